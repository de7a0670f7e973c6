"""Faults of processes: they are killed, or frozen, which looks like a process that hangs."""

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from world import MODEL, Fault, World, children

FIND_TIMEOUT_S = 60.0
LARGE_CLIENT = Path(__file__).with_name("large_client.py")
LARGE_SENT_WITHIN_S = 0.15

Find = Callable[[World, int, random.Random], int]  # the process id


def triton(world: World, index: int, rng: random.Random) -> int:
    """The tritonserver."""
    return world.servers[index].triton_pid


def step(world: World, index: int, rng: random.Random) -> int:
    """One of the processes that run Python models."""
    return rng.choice([pid for _, pid in sorted(world.servers[index].steps.items())])


def launcher(world: World, index: int, rng: random.Random) -> int:
    """rcnn-serve."""
    return world.servers[index].pid


def nginx_master(world: World, index: int, rng: random.Random) -> int:
    """The nginx process that was started; it starts the workers."""
    assert world.nginx is not None
    return world.nginx.pid


def nginx_worker(world: World, index: int, rng: random.Random) -> int:
    """One of nginx's worker processes."""
    return rng.choice(children(nginx_master(world, index, rng)))


@contextlib.contextmanager
def kill(find: Find, world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Sends SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(wait_for(find, world, index, rng), signal.SIGKILL)
    yield


@contextlib.contextmanager
def freeze(find: Find, world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Sends SIGSTOP, and SIGCONT at the end if the process still exists."""
    frozen = wait_for(find, world, index, rng)
    with contextlib.suppress(ProcessLookupError):
        os.kill(frozen, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(frozen, signal.SIGCONT)


@contextlib.contextmanager
def kill_large_clients(world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Two clients send a picture of 20 million pixels each, and are killed before they receive the answer."""
    url = world.nginx_url or world.relays[index].url
    with contextlib.ExitStack() as stack:
        command = [sys.executable, str(LARGE_CLIENT), url, MODEL]
        clients = [stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)) for _ in range(2)]
        for client in clients:
            stack.callback(client.kill)
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()  # the client is about to send
            time.sleep(rng.uniform(0, LARGE_SENT_WITHIN_S))
            client.kill()
        yield


def wait_for(find: Find, world: World, index: int, rng: random.Random) -> int:
    """The process id; waits if the process is just being restarted.

    Raises:
        TimeoutError: there is no such process.
    """
    until = time.monotonic() + FIND_TIMEOUT_S
    while time.monotonic() < until:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, IndexError):
            return find(world, index, rng)
        time.sleep(0.05)
    raise TimeoutError(
        f"{find.__name__} of {world.servers[index].url} did not exist for {FIND_TIMEOUT_S:g} s"
    )


FAULTS: dict[str, Fault] = {
    "server killed": functools.partial(kill, triton),
    "server frozen": functools.partial(freeze, triton),
    "step killed": functools.partial(kill, step),
    "step frozen": functools.partial(freeze, step),
    "rcnn-serve killed": functools.partial(kill, launcher),
    "rcnn-serve frozen": functools.partial(freeze, launcher),
    "clients killed in a large request": kill_large_clients,
}
NGINX_FAULTS: dict[str, Fault] = {
    "nginx killed": functools.partial(kill, nginx_master),
    "nginx frozen": functools.partial(freeze, nginx_master),
    "nginx worker killed": functools.partial(kill, nginx_worker),
    "nginx worker frozen": functools.partial(freeze, nginx_worker),
}
# These faults are over as soon as they have begun.
SUDDEN = {name for name in (*FAULTS, *NGINX_FAULTS) if "killed" in name}
