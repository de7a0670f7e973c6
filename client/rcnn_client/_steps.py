"""What a call of the client does, written once as generators that do no input or output themselves.

A plan yields steps. The sync and the async detector carry each step out and send its result, or throw its
error, back into the plan; what the plan returns is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

# Copying this much takes about as long as having a thread do it.
LARGE_BYTES = 1 << 18


@dataclass(frozen=True)
class Call:
    """A method of an endpoint's tritonclient, with its arguments; gives what the method returns."""

    endpoint: int
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Sleep:
    """Waits; gives nothing."""

    seconds: float


@dataclass(frozen=True)
class Run:
    """A function that blocks or computes for milliseconds; gives what it returns.

    Attributes:
        must_finish: the plan goes on only when the function has returned, even if its task is cancelled: they
            share something.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    must_finish: bool = False


Step: TypeAlias = "Call | Sleep | Run"
Plan: TypeAlias = Generator[Step, Any, T]


def copy(function: Callable[..., Any], *args: Any, num_bytes: int, must_finish: bool = False) -> Plan[Any]:
    """A function that copies `num_bytes`: called at once, or as a step where there are many of them."""
    if num_bytes < LARGE_BYTES:
        return function(*args)
    return (yield Run(function, args, must_finish))
