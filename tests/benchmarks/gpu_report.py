"""What gpu.py measured, as tables and as a plot.

python tests/benchmarks/gpu_report.py bench/gpu.json bench/gpu.png
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from stages import StageTime


class Served(NamedTuple):
    """A served model at one concurrency."""

    model: str
    clients: int
    images_per_s: float
    p50_ms: float
    p99_ms: float


def in_process_table(measured: dict[str, dict[int, float]]) -> Table:
    """Images a second and milliseconds a batch."""
    table = Table(title="In process: uint8 pictures on the device to boxes on the host")
    table.add_column("contender")
    batches = list(next(iter(measured.values())))
    for size in batches:
        table.add_column(f"batch {size}", justify="right")
    for name, times in measured.items():
        table.add_row(
            name, *(f"{size / times[size] * 1e3:.0f} img/s, {times[size]:.1f} ms" for size in batches)
        )
    return table


def served_table(rows: Sequence[Served]) -> Table:
    """A line a model and concurrency."""
    table = Table(title="Served: JPEGs over gRPC, perf_analyzer")
    for column in ("model", "clients", "img/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        numbers = f"{row.images_per_s:.0f}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}"
        table.add_row(row.model, str(row.clients), *numbers)
    return table


def plot(rows: Sequence[Served], path: Path) -> None:
    """Throughput against latency, a line a model."""
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    models: dict[str, list[Served]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row)
    for model, points in models.items():
        line = axes.plot(
            [p.p50_ms for p in points], [p.images_per_s for p in points], marker="o", label=model
        )
        for point in points:
            place = (point.p50_ms, point.images_per_s)
            axes.annotate(
                str(point.clients),
                place,
                xytext=(4, 4),
                textcoords="offset points",
                color=line[0].get_color(),
            )
    axes.set(
        xlabel="p50 latency, ms (numbers: clients)", ylabel="images a second", xscale="log", ylim=(0, None)
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(9, 0.5)))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def stages_table(stages: Sequence[StageTime], batch: int) -> Table:
    """Milliseconds a batch, and the share outside the engines."""
    table = Table(title=f"Stages at batch {batch}, each by itself")
    for column in ("stage", "ms", "floor, ms", "share"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    total = sum(row.time_ms for row in stages)
    outside = sum(row.time_ms for row in stages if "engine" not in row.stage)
    for row in stages:
        table.add_row(row.stage, f"{row.time_ms:.2f}", f"{row.floor_ms:.2f}", f"{row.time_ms / total:.0%}")
    table.add_section()
    table.add_row("all", f"{total:.2f}", f"{sum(row.floor_ms for row in stages):.2f}", "")
    table.add_row("outside the engines", f"{outside:.2f}", "", f"{outside / total:.0%}")
    return table


if __name__ == "__main__":
    rows = json.loads(Path(sys.argv[1]).read_text())["served"]
    plot([Served(**row) for row in rows], Path(sys.argv[2]))
