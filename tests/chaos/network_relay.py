"""A network before one server that a test can make slow, cut or silent.

    python tests/chaos/network_relay.py HOST:PORT

relays TCP to that server in a process of its own: it prints a line with its address, then reads its orders from stdin.
"""

import asyncio
import contextlib
import json
import math
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packet_path import PacketPath, PacketPathError

CHUNK = 1 << 14
MAX_CHUNKS_ON_THE_WAY = 1 << 10
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


@dataclass
class Condition:
    """How the network is. What it holds back goes on as soon as that ends.

    ``delay_s``: one way. ``bytes_per_s``: each way, of all connections together. ``passes_on``: what came is passed on.
    ``takes``: what comes is taken, as far as there is room for it. ``connects``: a connection that is accepted leads to
    the server. ``loss``, ``reordered``: share of the packets that are dropped, and that are overtaken by others; both need
    ``Relay.has_packets``.
    """

    delay_s: float = 0.0
    bytes_per_s: float = math.inf
    passes_on: bool = True
    takes: bool = True
    connects: bool = True
    loss: float = 0.0
    reordered: float = 0.0


class Relay:
    """A relay before the server at ``target``, both ``host:port``.

    ``url``: its own address. ``has_packets``: whether clients reach it through packets that can be lost;
    ``why_no_packets`` says why not.
    """

    def __init__(self, target: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._condition: dict[str, float | bool] = {}
        answer = self._answer()
        self.url: str = answer["url"]
        self.why_no_packets: str = answer["why_no_packets"]
        self.has_packets = not self.why_no_packets

    @contextlib.contextmanager
    def being(self, **changes: float | bool) -> Iterator[None]:
        """Change these attributes of the network's `Condition` while the block runs."""
        self._become(**changes)
        try:
            yield
        finally:
            self._become(**{name: getattr(Condition(), name) for name in changes})

    def cut(self) -> None:
        """Reset all connections, at both ends."""
        self._order("cut")

    def close(self) -> None:
        """End the relay, and with it its connections."""
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
    """What runs in the process of a relay."""

    def __init__(self, target: str, packets: PacketPath | None) -> None:
        self._target = target
        self._packets = packets
        self._connections: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._links = {True: asyncio.Lock(), False: asyncio.Lock()}  # to the server, and from it
        self._changed = asyncio.Condition()
        self._now = Condition()

    async def run(self, listener: socket.socket) -> None:
        """Relay all connections and obey the orders on stdin until it ends."""
        loop = asyncio.get_running_loop()
        orders = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        if self._packets is not None:
            self._packets.start()
        self._spawn(self._accept(listener))
        while line := await orders.readline():
            order = json.loads(line)
            if order == "cut":
                for connection in list(self._connections):
                    self._close(connection)
            else:
                await self._become(Condition(**order))
            print("{}", flush=True)

    async def _become(self, condition: Condition) -> None:
        self._now = condition
        if self._packets is not None:
            self._packets.become(condition.delay_s, condition.loss, condition.reordered)
        async with self._changed:
            self._changed.notify_all()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            self._spawn(self._connect(client))

    async def _connect(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        server = socket.socket()
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.add(end)
        try:
            await self._until("connects")
            host, port = self._target.split(":")
            await loop.sock_connect(server, (host, int(port)))
            await asyncio.gather(self._pass_on(client, server, True), self._pass_on(server, client, False))
        except OSError:
            pass
        finally:
            self._close(client)
            self._close(server)

    async def _pass_on(self, source: socket.socket, target: socket.socket, to_server: bool) -> None:
        """Pass on what comes from ``source`` until it ends."""
        loop = asyncio.get_running_loop()
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_CHUNKS_ON_THE_WAY)

        async def take() -> None:
            data = b"more"
            while data:
                await self._until("takes")
                data = await loop.sock_recv(source, CHUNK)
                async with self._links[to_server]:
                    await asyncio.sleep(len(data) / self._now.bytes_per_s)
                delay_s = 0.0 if self._packets else self._now.delay_s  # else each packet is delayed
                await on_the_way.put((loop.time() + delay_s, data))

        async def give() -> None:
            while True:
                due, data = await on_the_way.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._until("passes_on")
                if not data:
                    return target.shutdown(socket.SHUT_WR)
                await loop.sock_sendall(target, data)

        await asyncio.gather(take(), give())

    async def _until(self, what: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: getattr(self._now, what))

    def _close(self, connection: socket.socket) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            asyncio.get_running_loop().remove_reader(connection)
            asyncio.get_running_loop().remove_writer(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.close()


def main() -> None:
    """Relay to the server that the command line names, through packets where that is possible."""
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
