"""The report of rcnn-perf: tables, and a plot of latency over throughput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from .perf_analyzer import Latencies
from .triton_statistics import StepTime


@dataclass(frozen=True)
class Measurement:
    """The results for one number of pictures in flight; latencies are None if perf_analyzer did not finish."""

    in_flight: int
    latencies: Latencies | None
    num_failed: int
    steps: list[StepTime]


def latency_table(measurements: Sequence[Measurement]) -> Table:
    """Throughput and latency, a row per number of pictures in flight."""
    table = Table(title="Throughput and latency, as a client sees them", title_justify="left")
    for title in ("in flight", "images/s", "p50 ms", "p90 ms", "p99 ms", "failed"):
        table.add_column(title, justify="right")
    for each in measurements:
        cells = ["-"] * 4
        if each.latencies:
            cells = [
                f"{each.latencies.images_per_s:.1f}",
                *(
                    f"{ms:.1f}"
                    for ms in (each.latencies.p50_ms, each.latencies.p90_ms, each.latencies.p99_ms)
                ),
            ]
        table.add_row(str(each.in_flight), *cells, str(each.num_failed))
    return table


def step_table(model: str, measurements: Sequence[Measurement]) -> Table:
    """The time spent inside the server, by pictures in flight: each step's queue, computing and share.

    The names of steps are shown without the model's name, which is their prefix.
    """
    table = Table(title="Inside the server, mean per request", title_justify="left")
    table.add_column("in flight", justify="right")
    table.add_column("step", overflow="fold")
    for title in ("queue ms", "compute ms", "share", "images/batch"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in measurements:
        total_ms = sum(step.queue_ms + step.compute_ms for step in each.steps) or 1.0
        for position, step in enumerate(each.steps):
            table.add_row(
                "" if position else str(each.in_flight),
                escape(step.name.removeprefix(f"{model}_")),
                f"{step.queue_ms:.1f}",
                f"{step.compute_ms:.1f}",
                f"{(step.queue_ms + step.compute_ms) / total_ms:.0%}",
                f"{step.images_per_batch:.1f}",
            )
        table.add_section()
    return table


def plot(title: str, measurements: Sequence[Measurement], path: Path) -> None:
    """Plot latency over throughput as a PNG, one point per number of pictures in flight. Without measurements, write nothing."""
    measured = [(each.in_flight, each.latencies) for each in measurements if each.latencies]
    if not measured:
        return
    figure = Figure(figsize=(7.5, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    throughput = [latencies.images_per_s for _, latencies in measured]
    for label, key in (("p99", "p99_ms"), ("p90", "p90_ms"), ("p50", "p50_ms")):
        axes.plot(throughput, [getattr(latencies, key) for _, latencies in measured], "o-", label=label)
    for in_flight, latencies in measured:
        axes.annotate(
            str(in_flight),
            (latencies.images_per_s, latencies.p99_ms),
            xytext=(-8, 2),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
    axes.margins(x=0.08, y=0.1)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set(xlabel="throughput, images/s", ylabel="latency, ms")
    axes.set_title(f"{title}\nnumbers at the points: requests in flight", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", title="latency")
    figure.savefig(path)
