"""The output of rcnn-verify: the table of stages, the findings, the verdict."""

from rich import box
from rich.console import Console
from rich.table import Table

from rcnn_export.verify.stages import Verification

FINDINGS_SHOWN = 10


def make_table(verification: Verification, title: str) -> Table:
    """A row for each stage, mode (alone, end to end, served) and quantity."""
    caption = (
        "alone: the stage got torchvision's own input; end to end: the stage got the output of the stages before it; "
        "px: boxes; relative: to the largest magnitude in the picture; bound: the largest difference as a share of its "
        "bound. Mismatches are listed below"
    )
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, collapse_padding=True)
    for column in ("stage", "run", "unit"):
        table.add_column(column, no_wrap=True)
    for column in ("largest", "bound", "matched"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("holds")
    shown = ""
    for (stage, mode), comparison in verification.comparisons.items():
        # A dense array has no rows to pair.
        matched = (
            f"{comparison.matched}/{comparison.rows}" if comparison.rows or comparison.unexplained else ""
        )
        holds = "[green]yes[/green]" if comparison.holds else "[red]no[/red]"
        for index, (quantity, difference) in enumerate(comparison.differences.items()):
            table.add_row(
                "" if shown == stage else stage,
                "" if index else mode,
                quantity,
                f"{difference.largest:.1e}",
                f"{difference.worst:.0%}",
                *(("", "") if index else (matched, holds)),
            )
            shown = stage
    return table


def print_verdict(console: Console, verification: Verification) -> None:
    """What was explained, what was not, and whether it holds."""
    for (stage, mode), comparison in verification.comparisons.items():
        for reason, count in comparison.explained.items():
            console.print(f"{stage}, {mode}: {count} explained: {reason}")
        if comparison.holds:
            continue
        for finding in comparison.unexplained[:FINDINGS_SHOWN]:
            console.print(f"[red]{stage}, {mode}: {finding}[/red]")
        if len(comparison.unexplained) > FINDINGS_SHOWN:
            console.print(f"{stage}, {mode}: {len(comparison.unexplained) - FINDINGS_SHOWN} more")
    if verification.first_divergence:
        stage, mode = verification.first_divergence
        console.print(f"[red]Does not hold. The first stage that diverges: {stage} ({mode})[/red]")
    elif not verification.holds:
        share = f"{verification.matched_share:.2%}"
        console.print(
            f"[red]Does not hold: {share} of the detections match, and at least "
            f"{verification.precision.bounds.matched_share:.0%} must[/red]"
        )
    else:
        precision = verification.precision
        rest = "explained" if precision.bounds.explains else f"within the bounds of {precision.name}"
        console.print(f"Holds: {verification.matched_share:.2%} of the detections match, the rest is {rest}")
