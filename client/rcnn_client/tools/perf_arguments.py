"""The arguments of rcnn-perf."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import add_server_arguments, add_version, folder, positive

PROG = "rcnn-perf"
MAX_PICTURES = 100  # perf_analyzer holds its whole input in memory


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; wrong ones exit with 2."""
    return make_parser().parse_args(argv)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Measures a detector on a Triton server with perf_analyzer: throughput, latency, and the "
        "time spent in each step inside the server, for several numbers of pictures in flight.",
        epilog="Exit code: 0 if everything was measured, 1 if something failed (the reason is on stderr), 2 on "
        "wrong usage.",
    )
    parser.add_argument(
        "images",
        type=folder,
        metavar="FOLDER",
        help=f"folder whose pictures are sent, at most {MAX_PICTURES} of them",
    )
    add_version(parser)
    add_server_arguments(parser)
    parser.add_argument(
        "--in-flight",
        type=positive,
        nargs="+",
        default=[1, 4, 16],
        metavar="N",
        help="how many pictures are at the server at the same time (perf_analyzer's concurrency); each value is "
        "measured (default: 1 4 16)",
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        default=10,
        metavar="S",
        help="how long to measure each value of --in-flight (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("rcnn-perf"),
        metavar="FOLDER",
        help="output folder: input.json (perf_analyzer's input), measurements.json and throughput_latency.png (default: "
        "%(default)s)",
    )
    return parser
