"""Faults of the network in front of one server: slow, cut, silent or lossy."""

import contextlib
import functools
import random
import threading
from collections.abc import Iterator

from network_relay import Relay
from world import CannotHappenHereError, Fault, World

CUT_EVERY_S = (0.3, 1.5)


@contextlib.contextmanager
def impair(changes: dict[str, float | bool], world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Sets these attributes of the network's `Condition`."""
    with world.relays[index].being(**changes):
        yield


@contextlib.contextmanager
def impair_packets(
    changes: dict[str, float | bool], world: World, index: int, rng: random.Random
) -> Iterator[None]:
    """The same, for faults that are possible only with real packets."""
    relay: Relay = world.relays[index]
    if not relay.has_packets:
        raise CannotHappenHereError(relay.why_no_packets)
    with relay.being(**changes):
        yield


@contextlib.contextmanager
def cut_connections(world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Resets all connections, again and again."""
    over = threading.Event()

    def cut() -> None:
        while not over.is_set():
            world.relays[index].cut()
            over.wait(rng.uniform(*CUT_EVERY_S))

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def lead_nowhere(world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Resets connections, and accepts new ones without connecting them to the server, like a balancer without servers."""
    relay: Relay = world.relays[index]
    with relay.being(connects=False):
        relay.cut()
        yield


FAULTS: dict[str, Fault] = {
    "network slow, 100 ms": functools.partial(impair, {"delay_s": 0.1}),
    "network narrow, 200 kB/s": functools.partial(impair, {"bytes_per_s": 200_000}),
    "connections cut": cut_connections,
    "connections lead nowhere": lead_nowhere,
    "peer takes all, answers nothing": functools.partial(impair, {"passes_on": False}),
    "peer takes nothing": functools.partial(impair, {"takes": False}),
    "packets lost, 1%, 50 ms": functools.partial(impair_packets, {"loss": 0.01, "delay_s": 0.05}),
    "packets lost, 20%": functools.partial(impair_packets, {"loss": 0.2}),
    "packets reordered, 20%": functools.partial(impair_packets, {"reordered": 0.2}),
    "all packets lost": functools.partial(impair_packets, {"loss": 1.0}),
}
