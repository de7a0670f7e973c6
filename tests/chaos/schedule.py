"""Determines from a seed which fault happens when, and to which server."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LASTS_S = (3.0, 10.0)
TWO_AT_ONCE = 0.3  # share of the turns with a second fault


@dataclass(frozen=True)
class Turn:
    """One or two faults, both of the server with the index ``server``; the other server stays available.

    ``rng``: for the random choices of the faults themselves.
    """

    names: list[str]
    server: int
    lasts_s: float
    rng: random.Random


def schedule(names: Sequence[str], seed: int) -> Iterator[Turn]:
    """An endless sequence of turns. Every fault has its turn before one is repeated."""
    rng = random.Random(seed)
    while True:
        left = rng.sample(names, len(names))
        while left:
            number = 1 + (len(left) > 1 and rng.random() < TWO_AT_ONCE)
            chosen = [left.pop() for _ in range(number)]
            yield Turn(chosen, rng.randrange(2), rng.uniform(*LASTS_S), random.Random(rng.random()))
