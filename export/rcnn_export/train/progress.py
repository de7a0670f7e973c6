"""Shows how far a phase of training is: a bar on a terminal, and periodic lines in a log file."""

import math
import time
from datetime import timedelta
from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console

LOG_INTERVAL_S = 30.0


class Progress:
    """Reports the steps of a phase, an epoch or an evaluation.

    Args:
        name: the name of the phase and of its steps, such as "evaluating picture".
        total: how many steps it has.
        done: how many of them are already done.
    """

    def __init__(self, console: Console, name: str, total: int, done: int = 0) -> None:
        self._console = console
        self._name = name
        self._total = total
        self._first = self._done = done
        self._started_s = time.monotonic()
        self._said_s = -math.inf  # so that the first step is reported at once
        columns = (
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeRemainingColumn(),
        )
        self._bar = rich_progress.Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task(name, total=total, completed=done)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def advance(self, values: str = "") -> None:
        """Reports that a step is done; ``values`` are its results."""
        self._done += 1
        description = "  ".join(filter(None, (self._name, values)))
        self._bar.update(self._task, advance=1, description=description)
        now_s = time.monotonic()
        if self._console.is_terminal or now_s - self._said_s < LOG_INTERVAL_S:
            return
        self._said_s = now_s
        seconds_each = (now_s - self._started_s) / (self._done - self._first)
        left = timedelta(seconds=round(seconds_each * (self._total - self._done)))
        parts = (f"{self._name} {self._done}/{self._total}", values, f"{left} left")
        self._console.print("  ".join(filter(None, parts)))
