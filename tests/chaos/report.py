"""The outcomes of the requests, in total and by fault."""

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from load import LOST, RIGHT, WRONG, Request
from rich.console import Console
from rich.table import Column, Table

MAX_RECOVERY_S = 15.0


@dataclass(frozen=True)
class Event:
    """A fault of the server with the index ``server``; times are those of time.monotonic.

    ``recovery_s``: from the end of the fault until the server answered again and the clients had no more errors;
    infinite if it did not recover. ``over``: when the recovery was known.
    """

    name: str
    server: int
    began: float
    ended: float
    recovery_s: float
    over: float


@dataclass
class Report:
    """``skipped``: by the name of a fault, why it is not possible on this machine."""

    behind: str
    console: Console
    events: list[Event] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Keeps the event and prints a line about it."""
        self.events.append(event)
        lasted_s = event.ended - event.began
        self.console.print(
            f"{event.name}, server {event.server}: {lasted_s:.1f} s, then {event.recovery_s:.1f} s to recover",
            highlight=False,
        )

    def failures(self) -> list[str]:
        """A line for each failure."""
        counts = Counter(request.outcome for request in self.requests)
        lines = [f"{counts[outcome]} {outcome}" for outcome in (WRONG, LOST) if counts[outcome]]
        if not counts[RIGHT]:
            lines.append("no request was answered")
        if not self.events:
            lines.append("no fault happened")
        for event in self.events:
            if event.recovery_s > MAX_RECOVERY_S:
                lines.append(f"{event.recovery_s:.1f} s to recover from: {event.name}")
        return lines

    def show(self) -> None:
        """Prints the report."""
        counts = Counter(request.outcome for request in self.requests)
        errors = errors_by_kind(self.requests)
        self.console.print(
            f"Behind {self.behind}: {len(self.requests)} requests, {counts[RIGHT]} right, {counts[WRONG]} wrong, "
            f"{counts[LOST]} lost, {errors.total()} errors. Python {platform.python_version()}",
            soft_wrap=True,
        )
        self.console.print(self.table())
        for name, why in self.skipped.items():
            self.console.print(f"Left out: {name}. {why}", markup=False, soft_wrap=True)
        messages = Counter(request.message for request in self.requests if request.message)
        for message, count in messages.most_common(5):
            self.console.print(f"  {count} x {message}", markup=False, soft_wrap=True)
        for line in self.failures():
            self.console.print(f"Failed: {line}", markup=False, soft_wrap=True)

    def table(self) -> Table:
        """A row for each fault. A request belongs to the faults during which, or during whose recovery, it ended."""
        numbers = ("times", "requests", RIGHT, WRONG, LOST, "longest", "recovery")
        table = Table("fault", *(Column(name, justify="right") for name in numbers), "errors")
        for name in sorted({event.name for event in self.events}):
            events = [event for event in self.events if event.name == name]
            during = [
                request
                for request in self.requests
                if any(event.began < request.ended <= event.over for event in events)
            ]
            counts = Counter(request.outcome for request in during)
            table.add_row(
                name,
                str(len(events)),
                str(len(during)),
                *(str(counts[outcome]) for outcome in (RIGHT, WRONG, LOST)),
                f"{max((request.ended - request.began for request in during), default=0.0):.1f} s",
                f"{max(event.recovery_s for event in events):.1f} s",
                ", ".join(f"{count} {kind}" for kind, count in errors_by_kind(during).most_common()),
            )
        return table


def errors_by_kind(requests: Sequence[Request]) -> Counter[str]:
    """The number of requests that ended with each class of error."""
    return Counter(request.outcome for request in requests if request.outcome not in (RIGHT, WRONG, LOST))
