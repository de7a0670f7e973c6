"""Two servers under load, and one fault after the other: every answer is right or an error, and none is lost.

    python tests/chaos/chaos.py --seconds 1800 --seed 1 [--behind client|nginx]

Every answer is compared with the one of servers without faults. Exit code 1: an answer was wrong, a request
neither answered nor failed within its deadline and 2 s more, or the servers did not recover within 15 s of the
end of a fault.
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
STEADY_S = 3.0  # without an error: recovered
GIVE_UP_S = 60.0  # what has not recovered by then never will


def main() -> int:
    """Prints a report for each way to share the load; 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1800, help="in all")
    parser.add_argument("--seed", type=int, default=1, help="of the faults, their order, length and server")
    parser.add_argument(
        "--behind", choices=["client", "nginx"], help="what shares the load; both, one after the other"
    )
    known = FAULTS | process_faults.NGINX_FAULTS
    names = ", ".join(known).replace("%", "%%")
    parser.add_argument("--faults", nargs="+", metavar="FAULT", choices=known, help=f"only some of: {names}")
    parser.add_argument("--clients", type=int, default=NUM_CLIENTS, help="(default: %(default)s)")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers are stopped
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
    """Two servers, the load, and faults for so long."""
    with (
        tempfile.TemporaryDirectory(prefix="rcnn-chaos-") as folder,
        open_world(options.repository, Path(folder), report.behind) as world,
    ):
        questions, _ = (make_questions(server.url, MODEL) for server in world.servers)  # both are warm
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
            ):  # the process to hit is not there: what it has not recovered from is in the report
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
    """When the server answered again and the clients had no more errors; infinite if that never came."""
    with probe:
        while (now := time.monotonic()) < ended + GIVE_UP_S:
            recovered = max(probe.right_since, load.failed_at, ended)
            if load.serves_all_since(ended) and now > recovered + STEADY_S:
                return recovered
            time.sleep(0.05)
    return math.inf


if __name__ == "__main__":
    sys.exit(main())
