"""What the tools share: arguments, the progress bar, and messages on stderr."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

stderr = Console(stderr=True, highlight=False)


class _ImagesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        """The text of the column; empty until the first picture is done."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "", style="progress.data.speed")


def progress_bar() -> Progress:
    """Make a progress bar with images per second, on stderr, so that stdout holds only results."""
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), _ImagesPerSecond(), TimeRemainingColumn())
    return Progress(*columns, console=stderr)


def complain(prog: str, error: object) -> int:
    """Print on stderr what went wrong; returns the exit code, 1."""
    print(f"{prog}: {error}", file=sys.stderr)
    return 1


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--url` and `--model`, as rcnn-detect has them."""
    parser.add_argument(
        "--url",
        default="localhost:8001",
        metavar="HOST:PORT",
        help="gRPC address of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--model", default="faster_rcnn", metavar="NAME", help="detector on the server (default: %(default)s)"
    )


def positive(text: str) -> int:
    """Parse a whole number, at least 1; if the text is not a number, argparse shows this function's name."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def probability(text: str) -> float:
    """Parse a number from 0 to 1; if the text is not a number, argparse shows this function's name."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
