"""A simulated network in front of one server, which a test can make slow, cut or silent.

    python tests/chaos/network_relay.py HOST:PORT

relays TCP to that server in a separate process. It prints a line with its address, then reads orders from stdin.
"""

import asyncio
import contextlib
import json
import math
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packet_path import PacketPath, PacketPathError

CHUNK = 1 << 14
MAX_CHUNKS_ON_THE_WAY = 1 << 10
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


@dataclass
class Condition:
    """The state of the network. Data that it holds back is sent on as soon as the state allows.

    ``delay_s``: in one direction. ``bytes_per_s``: in each direction, for all connections together. ``passes_on``: data
    that was received is sent on. ``takes``: data is received, as far as the buffers have room. ``connects``: accepted
    connections are connected to the server. ``loss``, ``reordered``: the shares of packets that are dropped and that are
    overtaken by others; both need ``Relay.has_packets``.
    """

    delay_s: float = 0.0
    bytes_per_s: float = math.inf
    passes_on: bool = True
    takes: bool = True
    connects: bool = True
    loss: float = 0.0
    reordered: float = 0.0


class Relay:
    """A relay in front of the server at ``target`` (``host:port``).

    ``url``: the relay's own ``host:port``. ``has_packets``: whether clients reach it through packets that can be lost;
    if not, ``why_no_packets`` says why.
    """

    def __init__(self, target: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._condition: dict[str, float | bool] = {}
        self._lock = threading.Lock()  # for one order at a time
        answer = self._answer()
        self.url: str = answer["url"]
        self.why_no_packets: str = answer["why_no_packets"]
        self.has_packets = not self.why_no_packets

    @contextlib.contextmanager
    def being(self, **changes: float | bool) -> Iterator[None]:
        """Change these attributes of the network's `Condition` while the ``with`` block runs."""
        self._become(**changes)
        try:
            yield
        finally:
            self._become(**{name: getattr(Condition(), name) for name in changes})

    def cut(self) -> None:
        """Reset all connections, at both ends."""
        self._order("cut")

    def close(self) -> None:
        """End the relay and its connections."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _become(self, **changes: float | bool) -> None:
        self._condition |= changes
        self._order(self._condition)

    def _order(self, order: object) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"the relay ended with exit code {self._process.wait()}")
        return json.loads(line)


class RelayProcess:
    """The relay itself, in its separate process."""

    def __init__(self, target: str, packets: PacketPath | None) -> None:
        self._target = target
        self._packets = packets
        self._connections: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._now = Condition()

    async def run(self, listener: socket.socket) -> None:
        """Relay all connections and carry out the orders on stdin until stdin ends."""
        orders = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
        )
        if self._packets is not None:
            self._packets.start()
        accepting = asyncio.create_task(self._accept(listener))
        while line := await orders.readline():
            order = json.loads(line)
            if order == "cut":
                for connection in self._connections:
                    connection.cancel()
            else:
                await self._become(Condition(**order))
            print("{}", flush=True)
        accepting.cancel()

    async def _become(self, condition: Condition) -> None:
        self._now = condition
        if self._packets is not None:
            self._packets.become(condition.delay_s, condition.loss, condition.reordered)
        async with self._changed:
            self._changed.notify_all()

    async def _accept(self, listener: socket.socket) -> None:
        links = asyncio.Lock(), asyncio.Lock()  # to the server and from it
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            connection = asyncio.create_task(self._relay(client, *links))
            self._connections.add(connection)
            connection.add_done_callback(self._connections.discard)

    async def _relay(self, client: socket.socket, to_server: asyncio.Lock, from_server: asyncio.Lock) -> None:
        """Pass on data from either end until both have ended; reset both if one is lost or the task is cancelled."""
        server, tasks, is_over = socket.socket(), [], False
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._until("connects")
            host, port = self._target.split(":")
            await asyncio.get_running_loop().sock_connect(server, (host, int(port)))
            for source, target, link in ((client, server, to_server), (server, client, from_server)):
                on_the_way = asyncio.Queue[tuple[float, bytes]](MAX_CHUNKS_ON_THE_WAY)
                tasks.append(asyncio.create_task(self._take(source, on_the_way, link)))
                tasks.append(asyncio.create_task(self._give(on_the_way, target)))
            await asyncio.gather(*tasks)
            is_over = True
        except OSError:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in (client, server):
                if not is_over:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.close()

    async def _take(
        self, source: socket.socket, on_the_way: asyncio.Queue[tuple[float, bytes]], link: asyncio.Lock
    ) -> None:
        loop, data = asyncio.get_running_loop(), b"more"
        while data:
            await self._until("takes")
            data = await loop.sock_recv(source, CHUNK)
            async with link:
                await asyncio.sleep(len(data) / self._now.bytes_per_s)
            delay_s = 0.0 if self._packets else self._now.delay_s  # a PacketPath delays packets itself
            await on_the_way.put((loop.time() + delay_s, data))

    async def _give(self, on_the_way: asyncio.Queue[tuple[float, bytes]], target: socket.socket) -> None:
        loop, data = asyncio.get_running_loop(), b"more"
        while data:
            due, data = await on_the_way.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await self._until("passes_on")
            await loop.sock_sendall(target, data)
        target.shutdown(socket.SHUT_WR)

    async def _until(self, what: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: getattr(self._now, what))


def main() -> None:
    """Relay to the server that the command line names, through packets if possible."""
    packets, why_no_packets, address, far_address = None, "", "127.0.0.1", "127.0.0.1"
    try:
        packets = PacketPath()
    except PacketPathError as error:
        why_no_packets = str(error)
    else:
        address, far_address = packets.address, packets.far_address
    with socket.create_server((address, 0), backlog=128) as listener:
        listener.setblocking(False)
        url = f"{far_address}:{listener.getsockname()[1]}"
        print(json.dumps({"url": url, "why_no_packets": why_no_packets}), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(RelayProcess(sys.argv[1], packets).run(listener))


if __name__ == "__main__":
    main()
