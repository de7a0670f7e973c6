"""Sends ten times the load that a server can answer; measures its answers and refusals (`make overload`).

    python tests/benchmarks/overload.py --seconds 120 [--fused on off] [--protocol grpc http]

First it finds the best rate of right answers, with 1 to 16 clients that send one picture after the other. Then requests
are sent at ten times that rate, whether or not they are answered, each with a random deadline. Then the clients of the
best rate send requests again. Each answer is compared with the answer to the same picture without other load.

A separate process on one core makes the load; the server has the other cores.
"""

import argparse
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from memory import Memory
from overload_load import Reply, Target, pin, read_answer, run_closed, run_each, run_overload
from pictures import SCORE_THRESH, Found, encode_pictures, is_same
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_backend.server.stub_processes import cpu_seconds, find_stubs
from rich.console import Console
from rich.table import Table
from soak import REPOSITORY

CLIENTS = (1, 2, 4, 8, 16)
TIMES_THE_BEST = 10
MIN_GOODPUT = 0.9  # share of the best rate
MAX_RECOVERY_S = 10.0


@dataclass(frozen=True)
class Phase:
    """The replies of one part of the measurement, and the CPU time that it took.

    ``load_s``, ``server_s`` and ``triton_s``: CPU seconds of the process that makes the load, of all the server's
    processes, and of tritonserver alone.
    """

    replies: list[Reply]
    right: int
    wrong: int
    seconds: float
    load_s: float
    server_s: float
    triton_s: float

    @property
    def goodput(self) -> float:
        """Right answers per second, of those that came before the end of the phase."""
        end_s = min(reply.sent_s for reply in self.replies) + self.seconds
        in_time = sum(r.outcome == "answered" and r.sent_s + r.seconds <= end_s for r in self.replies)
        return (in_time - self.wrong) / self.seconds

    def latencies_s(self, outcome: str) -> list[float]:
        """The sorted latencies of the replies with this outcome."""
        return sorted(reply.seconds for reply in self.replies if reply.outcome == outcome)


class Bench:
    """One server, and the process that sends it requests."""

    def __init__(self, server: RunningServer, load: ProcessPoolExecutor, target: Target) -> None:
        self._server, self._load, self._target = server, load, target
        alone = load.submit(run_each, target).result()
        self._expected = {reply.picture: _found(reply) for reply in alone}

    def closed(self, clients: int, seconds: float) -> Phase:
        """``clients`` clients, each of which sends the next request as soon as it has its answer."""
        before = _cpu_seconds(self._server)
        replies, load_s = self._load.submit(run_closed, self._target, clients, seconds).result()
        return self._phase(replies, seconds, load_s, before)

    def overload(
        self, rate: float, seconds: float, deadlines_s: tuple[float, float], clients: int
    ) -> tuple[Phase, list[Reply]]:
        """The phase with too many requests, and the replies to normal load after it. The CPU seconds include both."""
        before = _cpu_seconds(self._server)
        job = self._load.submit(
            run_overload, self._target, rate, seconds, deadlines_s, clients, 2 * MAX_RECOVERY_S
        )
        replies, normal, load_s = job.result()
        return self._phase(replies, seconds, load_s, before), normal

    def _phase(
        self, replies: list[Reply], seconds: float, load_s: float, before: tuple[float, float]
    ) -> Phase:
        after = _cpu_seconds(self._server)
        answers = [reply for reply in replies if reply.outcome == "answered"]
        right = sum(is_same(_found(reply), self._expected[reply.picture]) for reply in answers)
        used = [now - then for now, then in zip(after, before, strict=True)]
        return Phase(replies, right, len(answers) - right, seconds, load_s, *used)


def _found(reply: Reply) -> Found:
    """The detections of an answer."""
    tensors = read_answer(reply)
    real = int(tensors["num_detections"].ravel()[0])
    return Found(*(tensors[name][0, :real] for name in Found._fields))


def _cpu_seconds(server: RunningServer) -> tuple[float, float]:
    """CPU seconds of all the server's processes, and of tritonserver alone."""
    triton_s = cpu_seconds(server.process.pid)
    return triton_s + sum(map(cpu_seconds, find_stubs(server.process.pid))), triton_s


def recovery_s(normal: list[Reply], usual_s: float) -> float | None:
    """Seconds from the end of the overload until a request was answered within the usual time; None if none was."""
    began = min(reply.sent_s for reply in normal)
    ends = [r.sent_s + r.seconds for r in normal if r.outcome == "answered" and r.seconds <= usual_s]
    return min(ends) - began if ends else None


def _percentiles(values: list[float]) -> str:
    """p50 / p99, in milliseconds."""
    if len(values) < 2:
        return "-"
    cuts = statistics.quantiles(values, n=100)
    return f"{1000 * cuts[49]:.3g} / {1000 * cuts[98]:.3g}"


def measure(
    server: RunningServer, load: ProcessPoolExecutor, target: Target, options: argparse.Namespace
) -> tuple[list[str], bool]:
    """One column of the table, and whether all requirements are met."""
    bench = Bench(server, load, target)
    phases = {clients: bench.closed(clients, options.best_s) for clients in CLIENTS}
    clients = max(phases, key=lambda count: phases[count].goodput)
    best = phases[clients]
    with Memory(server, max(0.5, options.seconds / 40)) as memory:
        over, normal = bench.overload(
            TIMES_THE_BEST * best.goodput, options.seconds, tuple(options.deadlines_s), clients
        )
    outcomes = Counter(reply.outcome for reply in over.replies)
    refused = outcomes["refused"]
    answered = over.right + sum(reply.outcome == "answered" for reply in normal)
    refusal_s = (over.triton_s - answered * best.triton_s / max(1, best.right)) / max(1, refused)
    in_all_s = options.seconds + 2 * MAX_RECOVERY_S
    recovered_s = recovery_s(normal, 2 * best.latencies_s("answered")[-1])
    grown = memory.grown(options.seconds / 4)
    cells = [
        f"{best.goodput:.1f} ({clients} clients)",
        f"{over.goodput:.1f}",
        f"{over.goodput / best.goodput:.2f}",
        f"{answered / over.server_s / (best.right / best.server_s):.2f}",
        _percentiles(over.latencies_s("answered")),
        f"{refused / options.seconds:.0f}",
        _percentiles(over.latencies_s("refused")),
        f"{1000 * refusal_s:.2f}",
        f"{outcomes['late']}, {outcomes['failed']}, {best.wrong + over.wrong}",
        "-" if recovered_s is None else f"{recovered_s:.1f}",
        "; ".join(grown) or "flat",
        f"{over.load_s / in_all_s:.0%}, {over.server_s / in_all_s:.0%}",
    ]
    is_good = (
        over.goodput >= MIN_GOODPUT * best.goodput
        and not (best.wrong or over.wrong or outcomes["failed"] or grown)
        and recovered_s is not None
        and recovered_s <= MAX_RECOVERY_S
    )
    return cells, is_good


ROWS = (
    "best, answers/s",
    "goodput, answers/s",
    "of the best",
    "for each CPU second, of the best",
    "answered, ms p50 / p99",
    "refused/s",
    "refused, ms p50 / p99",
    "a refusal, CPU ms",
    "late, failed, wrong",
    "recovery, s",
    "memory",
    "CPU of load, server",
)


def main() -> int:
    """Prints a table with a column for each way of serving; returns 0 if each meets the requirements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120, help="duration of the overload")
    parser.add_argument("--best-s", type=float, default=10, help="duration for each number of clients")
    parser.add_argument("--deadlines-s", type=float, nargs=2, default=(2.0, 10.0), metavar="S")
    parser.add_argument("--fused", nargs="+", choices=("on", "off"), default=["on"])
    parser.add_argument("--protocol", nargs="+", choices=("grpc", "http"), default=["grpc", "http"])
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--name", default="digits")
    options = parser.parse_args()
    console = Console(width=160)
    cores = sorted(os.sched_getaffinity(0))
    load_cores = set(cores[-1:])
    pin(set(cores[:-1]) or load_cores)  # the server inherits this
    columns: dict[str, list[str]] = {}
    all_good, began = True, time.monotonic()
    for fused in options.fused:
        with (
            running_server(options.repository, [options.name], fused=fused) as server,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), pin, (load_cores,)) as load,
        ):
            for protocol in options.protocol:
                parameters = {"score_thresh": SCORE_THRESH}
                target = Target(protocol, server.urls[protocol], options.name, encode_pictures(), parameters)
                columns[f"--fused {fused}, {protocol}"], is_good = measure(server, load, target, options)
                all_good &= is_good
    table = Table("", *columns, title=f"{TIMES_THE_BEST} times the best rate for {options.seconds:g} s")
    for name, cells in zip(ROWS, zip(*columns.values(), strict=True), strict=True):
        table.add_row(name, *cells)
    console.print(table)
    low, high = options.deadlines_s
    console.print(
        f"Each request has a deadline between {low:g} and {high:g} s. {len(cores)} cores of {os.cpu_count()}: the load on "
        f"core {min(load_cores)}, the server on the others. Load average {os.getloadavg()[1]:.1f}. "
        f"{time.monotonic() - began:.0f} s in all.\n"
        f"Python {platform.python_version()}, grpcio {version('grpcio')}, aiohttp {version('aiohttp')}, "
        f"nvidia-pytriton {version('nvidia-pytriton')}; command: python {shlex.join(sys.argv)}",
        markup=False,
        soft_wrap=True,
    )
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
