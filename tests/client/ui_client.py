"""Runs rcnn-ui in this process, with an HTTP client for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from aiohttp.test_utils import TestClient, TestServer
from rcnn_client.ui.app import make_app
from rcnn_client.ui.label_studio.pictures import NO_SOURCES, Sources
from rcnn_client.ui.triton_server import TritonServer

T = TypeVar("T")


@contextlib.asynccontextmanager
async def opened(
    url: str,
    *,
    in_flight: int = 4,
    timeout_s: float = 5.0,
    token: str = "",
    sources: Sources = NO_SOURCES,
) -> AsyncIterator[TestClient]:
    server = TritonServer(url, None, {})
    app = make_app(server, in_flight=in_flight, timeout_s=timeout_s, token=token, sources=sources)
    async with TestClient(TestServer(app)) as client:  # cancels the handler if its client goes away
        yield client


def ask(url: str, use: Callable[[TestClient], Awaitable[T]], **settings: object) -> T:
    """Run rcnn-ui for the server at `url`; returns what `use` returns for an HTTP client of it."""

    async def run() -> T:
        async with opened(url, **settings) as client:
            return await use(client)

    return asyncio.run(run())
