"""Faults of processes: killed, or frozen as one that hangs."""

import contextlib
import os
import random
import signal
from collections.abc import Iterator

from world import Fault, World


@contextlib.contextmanager
def kill_server(world: World, index: int, rng: random.Random) -> Iterator[None]:
    """SIGKILL of tritonserver."""
    os.kill(world.servers[index].triton_pid, signal.SIGKILL)
    yield


FAULTS: dict[str, Fault] = {"server killed": kill_server}
