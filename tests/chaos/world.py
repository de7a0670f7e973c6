"""The two servers to which the faults happen, optionally with nginx in front of them."""

import contextlib
import itertools
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from network_relay import Relay
from own_disks import own_disks, with_own_shared_memory
from rcnn_backend.server.stub_processes import find_stubs
from rcnn_client import Detector, RcnnError
from supervised import Supervised

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from balancer_nginx import nginx_command

MODEL = "digits"
READY_TIMEOUT_S = 120.0
# Below the ports that the kernel uses for outgoing connections, which could take a server's port while it restarts.
FIRST_PORT = 21000
_ports = itertools.count(FIRST_PORT + os.getpid() % 500 * 20)


class CannotHappenHereError(Exception):
    """A fault is not possible on this machine; the message is a sentence that says what is missing."""


class Server(Supervised):
    """An ``rcnn-serve`` on fixed ports, restarted whenever it ends.

    ``url``: ``host:port`` of its gRPC endpoint. ``folder``: has its log and its temporary files.
    """

    def __init__(self, repository: Path, folder: Path, *options: str) -> None:
        self.folder = folder
        ports = {protocol: free_port() for protocol in ("grpc", "http", "metrics")}
        self.url = f"127.0.0.1:{ports['grpc']}"
        command: list[str | Path] = [Path(sys.executable).with_name("rcnn-serve"), repository]
        command += ["--models", MODEL, "--log-file", folder / "tritonserver.log", *options]
        for protocol, port in ports.items():
            command += [f"--{protocol}-port", str(port)]
        command = with_own_shared_memory(command, folder)
        super().__init__(command, folder / "rcnn-serve.log", os.environ | {"TMPDIR": str(folder)})

    @property
    def triton_pid(self) -> int:
        """Process id of its tritonserver.

        Raises:
            ProcessLookupError: none is running.
        """
        with contextlib.suppress(FileNotFoundError):
            for pid in children(self.pid):
                if Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0].endswith("/tritonserver"):
                    return pid
        raise ProcessLookupError(f"no tritonserver runs for {self.url}")

    @property
    def steps(self) -> dict[str, int]:
        """Process id of each Python step, by the name of the model instance."""
        return {stub.instance: pid for pid, stub in find_stubs(self.triton_pid).items()}


@dataclass
class World:
    """``relays``: one in front of each server. ``nginx``: None if clients share the load themselves."""

    servers: list[Server]
    relays: list[Relay]
    folder: Path
    nginx: Supervised | None = None
    nginx_url: str = ""

    @property
    def urls(self) -> list[str]:
        """The addresses to which the clients connect."""
        return [self.nginx_url] if self.nginx else [relay.url for relay in self.relays]


Fault: TypeAlias = Callable[[World, int, random.Random], AbstractContextManager[None]]


@contextlib.contextmanager
def open_world(repository: Path, folder: Path, behind: str) -> Iterator[World]:
    """Two servers that are ready, one with the fused model and one with all steps; ``behind`` is ``client`` or ``nginx``."""
    with contextlib.ExitStack() as stack:
        servers, relays = [], []
        for way in ("on", "off"):
            own_folder = stack.enter_context(own_disks(folder / way))
            servers.append(Server(repository, own_folder, "--fused", way))
            stack.callback(servers[-1].stop)
            relays.append(Relay(servers[-1].url))
            stack.callback(relays[-1].close)
        for server in servers:
            wait_until_ready(server)
        world = World(servers, relays, folder)
        if behind == "nginx":
            (folder / "nginx").mkdir()
            world.nginx_url, command = nginx_command(world.urls, folder / "nginx")
            world.nginx = Supervised(command, folder / "nginx.log")
            stack.callback(world.nginx.stop)
        yield world


def wait_until_ready(server: Server) -> None:
    """Waits until the server serves the model.

    Raises:
        TimeoutError: it does not become ready in time, or it has ended.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        with contextlib.suppress(RcnnError), Detector(server.url, MODEL, retries=0, timeout_s=2) as detector:
            if detector.is_ready():
                return
        if time.monotonic() > deadline or server.starts > 1:
            raise TimeoutError(
                f"{server.url} does not become ready: {server.log.read_text(errors='replace')}"
            )
        time.sleep(0.2)


def children(pid: int) -> list[int]:
    """The process ids of the processes that the main thread of ``pid`` has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens; each call returns another one."""
    for port in _ports:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("count() never ends")
