"""What became of the requests, by fault."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from load import LOST, RIGHT, WRONG, Request, between
from rich.table import Table

MAX_RECOVERY_S = 15.0


@dataclass(frozen=True)
class Event:
    """A fault that happened: ``began``, ``ended`` and ``over`` by time.monotonic.

    ``recovery_s``: from ``ended`` until the server that it hit answered again and the clients had no more errors;
    infinite where it did not recover. ``over``: when that was known.
    """

    name: str
    server: int
    began: float
    ended: float
    recovery_s: float
    over: float


def errors_by_kind(requests: Iterable[Request]) -> Counter[str]:
    """How many requests each class of error ended."""
    return Counter(request.outcome for request in requests if request.is_error)


def count(requests: Iterable[Request], outcome: str) -> int:
    """The requests that ended so."""
    return sum(request.outcome == outcome for request in requests)


def fault_table(events: Sequence[Event], requests: Sequence[Request]) -> Table:
    """A row for each fault."""
    table = Table(title="Requests on their way during each fault and the recovery from it")
    for column in ("fault", "errors"):
        table.add_column(column)
    for column in ("times", "requests", "right", "wrong", "lost", "longest, s", "recovery, s"):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(event.name for event in events):
        its_events = [event for event in events if event.name == name]
        during = [each for event in its_events for each in between(requests, event.began, event.over)]
        kinds = [f"{number} {kind}" for kind, number in errors_by_kind(during).most_common()]
        longest_s = max((each.ended - each.began for each in during), default=0.0)
        table.add_row(
            name,
            ", ".join(kinds),
            *(str(number) for number in (len(its_events), len(during))),
            *(str(count(during, outcome)) for outcome in (RIGHT, WRONG, LOST)),
            f"{longest_s:.1f}",
            f"{max(event.recovery_s for event in its_events):.1f}",
        )
    return table


def failures(events: Sequence[Event], requests: Sequence[Request]) -> list[str]:
    """A line for each thing that must not be."""
    lines = [f"{number} {outcome}" for outcome in (WRONG, LOST) if (number := count(requests, outcome))]
    for event in events:
        if event.recovery_s > MAX_RECOVERY_S:
            took = "did not recover" if math.isinf(event.recovery_s) else f"took {event.recovery_s:.1f} s to recover"
            lines.append(f"server {event.server} {took} from: {event.name}")
    if not count(requests, RIGHT):
        lines.append("no request was answered")
    return lines
