"""The report of rcnn-eval: tables, the precision-recall plot and scores as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from .coco_score import ClassScore, Kind, Scores

METRICS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "AP small (under 32x32 px)": "ap_small",
    "AP medium (under 96x96 px)": "ap_medium",
    "AP large": "ap_large",
}
COUNTED: dict[Kind, str] = {"bbox": "boxes", "segm": "masks", "keypoints": "objects"}
MAX_COLOURED = 10  # classes drawn in their own colour


def metrics_table(scores: Sequence[Scores], kind: Kind) -> Table:
    """COCO's metrics; for two models also their difference."""
    of_what = "keypoints" if kind == "keypoints" else COUNTED[kind]
    table = Table(title=f"COCO average precision of {of_what}, 0 to 1", title_justify="left")
    table.add_column("")
    for title in ("first", "second", "difference") if len(scores) == 2 else ("all classes",):
        table.add_column(title, justify="right")
    for title, key in METRICS.items():
        table.add_row(title, *_with_difference([getattr(each, key) for each in scores]))
    return table


def class_table(scores: Sequence[Scores], kind: Kind) -> Table:
    """Average precision by class; for two models the AP of both and the difference."""
    table = Table(title="By class", title_justify="left")
    table.add_column("class", overflow="fold")
    compared = len(scores) == 2
    titles = ("AP first", "AP second", "difference") if compared else ("AP", "AP50", "AP75")
    for title in (COUNTED[kind], *titles):
        table.add_column(title, justify="right", no_wrap=True)
    for of_class, *other in zip(*(each.classes for each in scores), strict=True):
        aps = [of_class.ap, *(each.ap for each in other)]
        cells = (
            _with_difference(aps)
            if compared
            else [_number(ap) for ap in (of_class.ap, of_class.ap50, of_class.ap75)]
        )
        table.add_row(escape(of_class.name), str(of_class.num_boxes), *cells)
    return table


def as_json(url: str, model: str, scores: Mapping[Kind, Scores]) -> dict[str, Any]:
    """The model and the numbers of the tables; the numbers of masks and keypoints are under the name of their kind."""
    others = {str(kind): _numbers(each) for kind, each in scores.items() if kind != "bbox"}
    return {"url": url, "model": model, **_numbers(scores["bbox"]), **others}


def _numbers(scores: Scores) -> dict[str, Any]:
    """The numbers of the tables; None if nothing is annotated."""
    by_class = {
        each.name: {
            "num_boxes": each.num_boxes,
            **{key: _or_none(getattr(each, key)) for key in ("ap", "ap50", "ap75")},
        }
        for each in scores.classes
    }
    metrics = {key: _or_none(getattr(scores, key)) for key in METRICS.values()}
    return {**metrics, "classes": by_class}


def plot(names: Sequence[str], scores: Sequence[Scores], path: Path) -> None:
    """Plot precision over recall as a PNG. Each model has a row: the mean over classes, and every class."""
    figure = Figure(figsize=(11, 4.6 * len(scores)), dpi=120, layout="constrained")
    rows = figure.subplots(len(scores), 2, squeeze=False)
    for name, each, (mean_axes, class_axes) in zip(names, scores, rows, strict=True):
        _plot_means(mean_axes, each)
        _plot_classes(class_axes, each)
        mean_axes.set_title(f"{textwrap.fill(name, 60)}\nmean over the classes", fontsize=10)
        class_axes.set_title("each class at IoU 0.50", fontsize=10)
        for axes in (mean_axes, class_axes):
            axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03))
            axes.grid(alpha=0.3)
    figure.savefig(path)


def _plot_means(axes: Axes, scores: Scores) -> None:
    recalls = np.linspace(0, 1, scores.precision.shape[1])
    annotated = [position for position, each in enumerate(scores.classes) if each.ap >= 0]
    for index in (0, 5, 8):
        means = scores.precision[index][:, annotated].mean(axis=1)  # [R, K] -> [R]
        axes.plot(recalls, means, label=f"IoU {0.5 + 0.05 * index:.2f}: AP {means.mean():.3f}")
    axes.legend(loc="best", fontsize=9)


def _plot_classes(axes: Axes, scores: Scores) -> None:
    """Plot each class in its own colour; if there are too many, only the worst ones, with the others in grey."""
    recalls = np.linspace(0, 1, scores.precision.shape[1])
    annotated = [(position, each) for position, each in enumerate(scores.classes) if each.ap >= 0]
    worst = sorted(annotated, key=lambda entry: entry[1].ap50)[:MAX_COLOURED]
    for position, each in annotated:
        curve = scores.precision[0][:, position]
        if (position, each) in worst:
            axes.plot(recalls, curve, linewidth=1.4, label=_class_label(each), zorder=3)
        else:
            axes.plot(recalls, curve, linewidth=0.7, color="0.75")
    others = len(annotated) - len(worst)
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        fontsize=8,
        title=f"the {len(worst)} lowest AP50,\n{others} others in grey" if others else "AP50",
        title_fontsize=8,
    )


def _class_label(of_class: ClassScore) -> str:
    name = of_class.name if len(of_class.name) <= 18 else of_class.name[:17] + "…"
    return f"{name.replace('$', chr(92) + '$')}: {of_class.ap50:.2f}"


def _or_none(value: float) -> float | None:
    return None if value < 0 else value


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _with_difference(values: Sequence[float]) -> list[str]:
    """The values as text; for two values also the second minus the first."""
    cells = [_number(value) for value in values]
    if len(values) == 2:
        cells.append("-" if min(values) < 0 else f"{values[1] - values[0]:+.3f}")
    return cells
