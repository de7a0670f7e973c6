"""Shows the results of gpus.py as a table."""

from collections.abc import Sequence
from typing import NamedTuple

from decode_share import BatchTime
from rich.table import Table
from watch_host import CLIENT, STEPS, TRITON, Usage

GOAL = 1.85  # rate of two GPUs, in rates of one


class Row(NamedTuple):
    """The result for one set of GPUs and one number of clients.

    ``queue_ms`` and ``compute_ms``: means per request. ``images_per_batch``: mean per execution of the fused model.
    """

    gpus: str  # as for rcnn-serve --gpus
    clients: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    queue_ms: float
    compute_ms: float
    images_per_batch: float
    usage: Usage

    @property
    def outside_ms(self) -> float:
        """Time of a request outside the queue and the model: client, network, gRPC."""
        return 1e3 * self.clients / self.images_per_s - self.queue_ms - self.compute_ms

    @property
    def num_gpus(self) -> int:
        """How many GPUs serve."""
        return len(self.gpus.split(","))


def compare(rows: Sequence[Row], row: Row) -> float | None:
    """The row's rate as a multiple of that of one GPU with as many clients; None if that was not measured."""
    for other in rows:
        if other.num_gpus == 1 and other.clients == row.clients:
            return row.images_per_s / other.images_per_s
    return None


def gpus_table(rows: Sequence[Row], name: str) -> Table:
    """A table of the rows, with the CPU cores that each kind of process used."""
    table = Table(title=f"{name}, fused, JPEGs over gRPC")
    for column in ("GPUs", "clients", "img/s", "of one GPU's", "p50 / p99 ms", "batch"):
        table.add_column(column, justify="right")
    for column in ("queue ms", "model ms", "rest ms", CLIENT, TRITON, STEPS, "host", "GPUs busy"):
        table.add_column(column, justify="right")
    for row in rows:
        times = compare(rows, row)
        times_ms = (f"{value:.1f}" for value in (row.queue_ms, row.compute_ms, row.outside_ms))
        cores = (f"{row.usage.cores[kind]:.1f}" for kind in (CLIENT, TRITON, STEPS))
        table.add_row(
            row.gpus,
            f"{row.clients}",
            f"{row.images_per_s:.0f}",
            f"{times:.2f}" if times else "",
            f"{row.p50_ms:.1f} / {row.p99_ms:.1f}",
            f"{row.images_per_batch:.1f}",
            *times_ms,
            *cores,
            f"{row.usage.host_cores:.1f}",
            ", ".join(f"{percent:.0f}%" for percent in row.usage.gpus.values()),
        )
    return table


def shares(rows: Sequence[Row], jpeg_bytes: float, batch: BatchTime | None, cores: int) -> list[str]:
    """Lines about the network, the decoder and the goal.

    Args:
        jpeg_bytes: mean size of a picture.
        batch: the times measured in process.
        cores: number of the host's cores.
    """
    most = max(row.images_per_s for row in rows)
    lines = [
        f"A picture has {jpeg_bytes / 1e3:.0f} kB: {most:.0f} a second are {most * jpeg_bytes * 8 / 1e9:.2f} Gbit/s. "
        f"Processes are in cores, of {cores}."
    ]
    if batch:
        lines.append(
            f"In process on one GPU, a batch of {batch.batch} takes {batch.whole_ms:.1f} ms, of which decoding "
            f"{batch.decode_ms:.1f} ({batch.decode_ms / batch.whole_ms:.0%}): {1e3 * batch.batch / batch.whole_ms:.0f} img/s."
        )
    for row in rows:
        if row.num_gpus == 2 and (times := compare(rows, row)):
            verdict = "reached" if times >= GOAL else "missed"
            lines.append(
                f"{row.clients} clients: {times:.2f} times one GPU's rate; the goal of {GOAL} is {verdict}."
            )
    return lines
