"""What the commands print on stderr: the progress bar and messages."""

from __future__ import annotations

import io
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


def escape_what_cannot_be_encoded() -> None:
    r"""Make stdout and stderr print an escape, such as \udcff, for a byte of a file name that is not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(prog: str, error: object) -> int:
    """Print on stderr what went wrong; returns the exit code, 1."""
    if isinstance(error, OSError) and error.filename is not None:  # str(error) would start with [Errno 2]
        error = f"{error.filename}: {error.strerror}"
    print(f"{prog}: {error}", file=sys.stderr)
    return 1
