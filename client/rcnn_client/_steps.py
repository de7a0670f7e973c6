"""The steps of a call, so that the sync and the async detector can share its logic.

A plan is a generator that does no input or output itself. It yields steps. The detector carries out each
step and sends the result, or throws the error, back into the plan. The plan returns the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

T = TypeVar("T")

# Copying this much takes about as long as starting a thread for it.
LARGE_BYTES = 1 << 18


@dataclass(frozen=True)
class Call:
    """Call a method of an endpoint's tritonclient; the result is what the method returns.

    Attributes:
        apart: use a second connection to the endpoint, on which nothing large is being sent.
    """

    endpoint: int
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    apart: bool = False


class Running(Protocol):
    """A call that was started."""

    def done(self) -> bool: ...

    def result(self) -> Any: ...

    def cancel(self) -> Any: ...


@dataclass(frozen=True)
class Start:
    """Start a call of tritonclient's `infer`; the result is a `Running`."""

    call: Call


@dataclass(frozen=True)
class Wait:
    """Wait until a call that was started is done, or for some seconds; the result says whether it is done."""

    running: Any  # what `Start` gave
    seconds: float


@dataclass(frozen=True)
class Sleep:
    """Wait; there is no result."""

    seconds: float


@dataclass(frozen=True)
class Run:
    """Call a function that blocks or computes for milliseconds; the result is what it returns.

    Attributes:
        must_finish: even if the task is cancelled, the plan continues only after the function has returned.
            Needed where the function writes to memory that the plan then frees.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    must_finish: bool = False


Step: TypeAlias = "Call | Start | Wait | Sleep | Run"
Plan: TypeAlias = Generator[Step, Any, T]


def copy(function: Callable[..., Any], *args: Any, num_bytes: int, must_finish: bool = False) -> Plan[Any]:
    """Call a function that copies `num_bytes`: directly if they are few, otherwise as a step."""
    if num_bytes < LARGE_BYTES:
        return function(*args)
    return (yield Run(function, args, must_finish))
