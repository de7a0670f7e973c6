"""Injects faults into two servers under load: every answer must be right or an error, and no request may be lost.

    python tests/chaos/chaos.py --seconds 1800 --seed 1 [--behind client|nginx]

Every answer is compared with the one of servers without faults. The exit code is 1 if an answer was wrong, if a request
had neither an answer nor an error 2 s after its deadline, or if the servers did not recover within 15 s of the end of a
fault.
"""

import argparse
import math
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import gpu_faults
import network_faults
import process_faults
import resource_faults
from load import NUM_CLIENTS, Load, Probe, make_questions
from report import Event, Report
from rich.console import Console
from schedule import Turn, schedule
from world import MODEL, CannotHappenHereError, Fault, World, open_world

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
FAULTS = process_faults.FAULTS | resource_faults.FAULTS | network_faults.FAULTS | gpu_faults.FAULTS
STEADY_S = 3.0  # after this time without an error, the servers have recovered
GIVE_UP_S = 60.0  # no recovery is expected after this time


def main() -> int:
    """Prints a report for each way to share the load; returns 1 if there was any failure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1800, help="total duration")
    parser.add_argument(
        "--seed", type=int, default=1, help="determines the order, duration and server of the faults"
    )
    parser.add_argument(
        "--behind",
        choices=["client", "nginx"],
        help="what shares the load (default: first client, then nginx)",
    )
    known = FAULTS | process_faults.NGINX_FAULTS
    names = ", ".join(known).replace("%", "%%")
    parser.add_argument(
        "--faults", nargs="+", metavar="FAULT", choices=known, help=f"only these faults, out of: {names}"
    )
    parser.add_argument("--clients", type=int, default=NUM_CLIENTS, help="(default: %(default)s)")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers are stopped
    console = Console(width=160)
    console.print(f"python {shlex.join(sys.argv)}, on {os.cpu_count()} cores", markup=False, soft_wrap=True)
    failed = False
    ways = [options.behind] if options.behind else ["client", "nginx"]
    for behind in ways:
        faults = known if behind == "nginx" else FAULTS
        faults = {name: fault for name, fault in faults.items() if name in (options.faults or known)}
        report = Report(behind, console)
        run(options, options.seconds / len(ways), faults, report)
        report.show()
        failed |= bool(report.failures())
    return int(failed)


def run(options: argparse.Namespace, seconds: float, faults: Mapping[str, Fault], report: Report) -> None:
    """Starts two servers and the load, and injects faults for ``seconds`` seconds."""
    with (
        tempfile.TemporaryDirectory(prefix="rcnn-chaos-") as folder,
        open_world(options.repository, Path(folder), report.behind) as world,
    ):
        questions, _ = (make_questions(server.url, MODEL) for server in world.servers)  # warms both
        probes = [Probe(server.url, MODEL, questions[0]) for server in world.servers]
        with Load(world.urls, MODEL, questions, options.clients) as load:
            until = time.monotonic() + seconds
            for turn in schedule(list(faults), options.seed):
                if time.monotonic() > until or report.skipped.keys() == faults.keys():
                    break
                happen(turn, faults, world, load, probes[turn.server], report)
        report.requests = load.requests


def happen(
    turn: Turn, faults: Mapping[str, Fault], world: World, load: Load, probe: Probe, report: Report
) -> None:
    """Begins the faults of a turn, ends them, and waits for the recovery."""
    began: dict[str, float] = {}
    with ExitStack() as stack:
        for name in turn.names:
            now = time.monotonic()
            try:
                stack.enter_context(faults[name](world, turn.server, turn.rng))
            except CannotHappenHereError as error:
                report.skipped[name] = str(error)
            except (
                TimeoutError
            ):  # there is no such process: the report has the fault from which it has not recovered
                continue
            else:
                began[name] = now
        if not began.keys() <= process_faults.SUDDEN:
            time.sleep(turn.lasts_s)
    if not began:
        return
    ended = time.monotonic()
    recovery_s = wait_for_recovery(ended, load, probe) - ended
    over = time.monotonic()
    for name, start in began.items():
        report.add(Event(name, turn.server, start, ended, recovery_s, over))


def wait_for_recovery(ended: float, load: Load, probe: Probe) -> float:
    """The time at which the server answered again and the clients had no more errors; infinite if that never happened."""
    with probe:
        while (now := time.monotonic()) < ended + GIVE_UP_S:
            recovered = max(probe.right_since, load.failed_at, ended)
            if load.serves_all_since(ended) and now > recovered + STEADY_S:
                return recovered
            time.sleep(0.05)
    return math.inf


if __name__ == "__main__":
    sys.exit(main())
