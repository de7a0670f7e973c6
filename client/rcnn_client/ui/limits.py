"""How many requests rcnn-ui accepts at once, and how long it waits for their bodies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from typing import TypeVar

from aiohttp import web

from .._errors import QueueFullError
from .._results import window

T = TypeVar("T")

MAX_BODY_BYTES = 64 * 2**20
MAX_UPLOAD_S = 60.0


class Places:
    """How many requests are held in memory, and how many pictures are at the server.

    Attributes:
        at_server: hold it while a picture is at the server; at most `in_flight` are.
    """

    def __init__(self, in_flight: int) -> None:
        self.at_server = asyncio.Semaphore(in_flight)
        self._num_held, self._most_held = 0, window(in_flight)

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Hold the body of a request.

        Raises:
            QueueFullError: there are too many.
        """
        if self._num_held >= self._most_held:
            raise QueueFullError(
                f"{self._num_held} pictures are already waiting, the most that rcnn-ui accepts; try again"
            )
        self._num_held += 1
        try:
            yield
        finally:
            self._num_held -= 1


async def read_in_time(reading: Awaitable[T]) -> T:
    """The result of `reading`, which reads a body.

    Raises:
        web.HTTPRequestTimeout: the body arrives too slowly.
    """
    try:
        return await asyncio.wait_for(reading, MAX_UPLOAD_S)
    except asyncio.TimeoutError as error:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {MAX_UPLOAD_S:g} s") from error
