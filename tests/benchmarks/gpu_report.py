"""Shows the results of gpu.py as tables and as plots.

python tests/benchmarks/gpu_report.py bench/gpu.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rcnn_export.detector.load import Detector
from rich.table import Table
from stages import StageTime

OURS, THEIRS = "Pipeline", "torchvision AMP"  # in process
FUSED, PEER = "fused", "peer"  # the same two, served


class InProcess(NamedTuple):
    """A contender's median time for one batch; each picture has ``detections`` detections."""

    detector: str
    detections: int
    contender: str
    batch: int
    batch_ms: float


class Served(NamedTuple):
    """A served model with one number of clients; each picture has ``detections`` detections."""

    detector: str
    detections: int
    model: str
    clients: int
    images_per_s: float
    p50_ms: float
    p99_ms: float


class ImageTime(NamedTuple):
    """The time per image; ``load`` is the batch size in process, or the number of clients of a server."""

    detections: int
    load: str
    detector: str
    model: str
    image_ms: float


def name_of(detector: Detector) -> str:
    """A builder's name, without its module."""
    return detector.model_name.rpartition(":")[2]


def in_process_table(rows: Sequence[InProcess]) -> Table:
    """Images per second and milliseconds per batch, with a column for each batch size."""
    table = make_table("In process: uint8 pictures on the device to answers on the host", "contender")
    batches = sorted({row.batch for row in rows})
    for size in batches:
        table.add_column(f"batch {size}", justify="right")
    times: dict[tuple[str, ...], dict[int, float]] = {}
    for row in rows:
        times.setdefault((row.detector, str(row.detections), row.contender), {})[row.batch] = row.batch_ms
    for names, by_batch in times.items():
        cells = (f"{size / by_batch[size] * 1e3:.0f} img/s, {by_batch[size]:.1f} ms" for size in batches)
        table.add_row(*names, *cells)
    return table


def served_table(rows: Sequence[Served]) -> Table:
    """A row for each model and number of clients."""
    table = make_table("Served: JPEGs over gRPC, perf_analyzer", "model")
    for column in ("clients", "img/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = f"{row.images_per_s:.0f}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}"
        table.add_row(row.detector, str(row.detections), row.model, str(row.clients), *numbers)
    return table


def comparison_table(in_process: Sequence[InProcess], served: Sequence[Served]) -> Table:
    """The time per image in Pipeline and the fused model, compared with the first detector and with torchvision."""
    rows = [
        ImageTime(row.detections, f"batch {row.batch}", row.detector, row.contender, row.batch_ms / row.batch)
        for row in in_process
    ]
    rows += [
        ImageTime(row.detections, f"{row.clients} clients", row.detector, row.model, 1e3 / row.images_per_s)
        for row in served
    ]
    times = {row[:4]: row.image_ms for row in rows}
    detectors = list(dict.fromkeys(row.detector for row in rows))
    first = detectors[0]
    table = make_table("Time per image", "model")
    for column in ("load", "ms per image", f"more than {first}", "torchvision AMP", "times as fast"):
        table.add_column(column, justify="right")
    for row in rows:
        if row.model not in (OURS, FUSED):
            continue
        base = times.get((row.detections, row.load, first, row.model)) if row.detector != first else None
        theirs = times.get((row.detections, row.load, row.detector, THEIRS if row.model == OURS else PEER))
        table.add_row(
            row.detector,
            str(row.detections),
            row.model,
            row.load,
            f"{row.image_ms:.2f}",
            f"{row.image_ms / base - 1:+.0%}" if base else "",
            f"{theirs:.2f}" if theirs else "",
            f"{theirs / row.image_ms:.1f}" if theirs else "",
        )
    return table


def make_table(title: str, last: str) -> Table:
    """A table whose first columns are the detector, the number of detections and ``last``."""
    table = Table(title=title)
    table.add_column("detector")
    table.add_column("detections", justify="right")
    table.add_column(last)
    return table


def plot_detectors(rows: Sequence[Served], folder: Path) -> None:
    """Plots each detector's served models, with the largest number of detections, in ``gpu_<detector>.png``."""
    for detector in dict.fromkeys(row.detector for row in rows):
        own = [row for row in rows if row.detector == detector]
        most = max(row.detections for row in own)
        plot([row for row in own if row.detections == most], folder / f"gpu_{detector}.png")


def plot(rows: Sequence[Served], path: Path) -> None:
    """Throughput against latency, with a line for each model."""
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


def stages_table(stages: Sequence[StageTime], title: str) -> Table:
    """Milliseconds per batch, and the share outside the engines."""
    table = Table(title=title)
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
    results = Path(sys.argv[1])
    plot_detectors([Served(**row) for row in json.loads(results.read_text())["served"]], results.parent)
