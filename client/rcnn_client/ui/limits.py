"""How much rcnn-ui takes at once, and for how long it waits for it."""

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
        at_server: hold it while a picture is there; at most `in_flight` are.
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
                f"{self._num_held} pictures are held already, the most that rcnn-ui takes; try again"
            )
        self._num_held += 1
        try:
            yield
        finally:
            self._num_held -= 1


async def read_in_time(reading: Awaitable[T]) -> T:
    """What a body is read as.

    Raises:
        web.HTTPRequestTimeout: it comes too slowly.
    """
    try:
        return await asyncio.wait_for(reading, MAX_UPLOAD_S)
    except asyncio.TimeoutError as error:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {MAX_UPLOAD_S:g} s") from error
