"""Clients that are idle or very slow, and how they affect other clients (`make slow-clients`).

    python tests/benchmarks/slow_clients.py --idle 2000 --slow 200

There are gRPC and HTTP connections that send nothing, HTTP requests that send one byte per second, and HTTP answers
that nobody reads. Meanwhile another client sends requests over both protocols, and each of its answers must be right.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

from memory import memory_mib
from overload_load import Reply, Target, read_answer, run_each
from pictures import SCORE_THRESH, encode_pictures
from rcnn_backend.server.local_server import RunningServer, running_server
from soak import REPOSITORY

HEAD = "POST /v2/models/{}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n"


@contextlib.asynccontextmanager
async def slow_clients(server: RunningServer, model: str, idle: int, slow: int) -> AsyncIterator[None]:
    """Keeps ``idle`` idle connections to each protocol and ``slow`` slow writers and readers over HTTP open."""
    writers: list[asyncio.StreamWriter] = []

    async def connect(protocol: Literal["grpc", "http"]) -> asyncio.StreamWriter:
        host, _, port = server.urls[protocol].rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)  # reads almost nothing
        writers.append(writer)
        return writer

    async def write_slowly() -> None:
        writer = await connect("http")
        writer.write(HEAD.format(model, 1_000_000).encode())
        while not writer.is_closing():
            writer.write(b"{")
            await asyncio.sleep(1)

    async def never_read() -> None:
        request = f"GET /v2/models/{model}/config HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        writer = await connect("http")
        for _ in range(50):
            writer.write(request)
        await asyncio.sleep(3600)

    for _ in range(idle):
        await connect("grpc")
        await connect("http")
    tasks = [asyncio.create_task(each()) for each in (write_slowly, never_read) for _ in range(slow // 2)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()


def answered(replies: list[Reply]) -> list[dict[str, list[float]]]:
    """The tensors of each answer. Equal pictures have equal answers, because they were sent one after the other."""
    return [
        {name: tensor.tolist() for name, tensor in read_answer(reply).items()}
        for reply in replies
        if reply.outcome == "answered"
    ]


async def compare(server: RunningServer, model: str, idle: int, slow: int) -> bool:
    """Sends requests without and with slow clients; prints a comparison and returns whether all answers were equal."""
    pictures = encode_pictures()
    good = True
    for protocol in ("grpc", "http"):
        target = Target(protocol, server.urls[protocol], model, pictures, {"score_thresh": SCORE_THRESH})
        alone = await asyncio.to_thread(run_each, target)
        before = sum(memory_mib(server).values())
        async with slow_clients(server, model, idle, slow):
            await asyncio.sleep(2)
            beside = await asyncio.to_thread(run_each, target)
            grown = sum(memory_mib(server).values()) - before
            files = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        same = answered(alone) == answered(beside) and len(answered(beside)) == len(pictures)
        good &= same
        medians = [1000 * statistics.median(reply.seconds for reply in part) for part in (alone, beside)]
        print(
            f"{protocol}: {medians[0]:.0f} ms alone, {medians[1]:.0f} ms with {2 * idle} idle and {slow} slow connections; "
            f"{'all answers the same' if same else 'ANSWERS DIFFER'}; {grown:+.0f} MiB, {files} files open"
        )
    return good


def main() -> int:
    """Returns 0 if every request was answered as without slow clients."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idle", type=int, default=2000, help="number of idle connections to each protocol")
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--name", default="digits")
    options = parser.parse_args()
    began = time.monotonic()
    with running_server(options.repository, [options.name], fused="on") as server:
        good = asyncio.run(compare(server, options.name, options.idle, options.slow))
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
