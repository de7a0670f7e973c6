"""Two servers under load while one fault after the other hits them: every answer is right or an error, none is lost.

    python tests/chaos/chaos.py --seconds 1800 --seed 1 [--behind client|nginx]

Every answer is compared with the one of servers without faults. The seed chooses the faults, their order, their
lengths and the server that each hits. Exit code 1: an answer was wrong, a request neither answered nor failed within
its deadline, or the servers did not recover within 15 s of the end of a fault.
"""

import argparse
import math
import random
import shlex
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import process_faults
from load import LOST, RIGHT, WRONG, Load, Probe
from report import Event, count, errors_by_kind, failures, fault_table
from rich.console import Console
from world import MODEL, CannotHappenHereError, Fault, World, open_world

from pictures import ask_alone, encode_pictures

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
FAULTS: dict[str, Fault] = process_faults.FAULTS
FAULT_S = (3.0, 10.0)
TWO_AT_ONCE = 0.3  # the share of faults that another joins
LAST_S = 60.0  # what has not recovered by then never does


def main() -> int:
    """Prints the report; 1 if anything was wrong, lost or too slow to recover."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1800, help="half of it behind each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--behind", choices=["client", "nginx"], help="only one way to share the load")
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=list(FAULTS), help="only these", metavar="FAULT")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers end, too
    console = Console(width=160)
    console.print(f"python {shlex.join(sys.argv)}; {os.cpu_count()} cores", markup=False, soft_wrap=True)
    behind = [options.behind] if options.behind else ["client", "nginx"]
    chosen = {name: FAULTS[name] for name in options.faults}
    bad = [run(way, options.seconds / len(behind), options.seed, chosen, options.repository, console) for way in behind]
    return int(any(bad))


def run(
    behind: str, seconds: float, seed: int, faults: Mapping[str, Fault], repository: Path, console: Console
) -> bool:
    """One world and its report; whether it failed."""
    pictures = encode_pictures()
    skipped: dict[str, str] = {}
    events: list[Event] = []
    with tempfile.TemporaryDirectory(prefix="rcnn-chaos-") as folder, open_world(repository, Path(folder), behind) as world:
        expected = [ask_alone(server.url, MODEL, pictures) for server in world.servers][0]
        with Load(world.urls, MODEL, pictures, expected) as load:
            until = time.monotonic() + seconds
            for each in schedule(faults, random.Random(seed)):
                if time.monotonic() > until or len(skipped) == len(faults):
                    break
                events += happen(world, load, *each, skipped)
        console.rule(f"behind {behind}")
    for name, why in skipped.items():
        console.print(f"Left out: {name}. {why}", markup=False)
    requests = load.requests
    console.print(f"{len(requests)} requests: ...")
    console.print(fault_table(events, requests))
    return bool(failures(events, requests))
