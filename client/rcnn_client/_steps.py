"""What a call of the client does, written once as generators that do no input or output themselves.

A plan yields steps. The sync and the async detector carry each step out and send its result, or throw its
error, back into the plan; what the plan returns is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")


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
    """A function that blocks or computes for milliseconds; gives what it returns."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


Step: TypeAlias = "Call | Sleep | Run"
Plan: TypeAlias = Generator[Step, Any, T]
