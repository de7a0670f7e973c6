"""Which fault happens when, and to which server: the seed decides."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LASTS_S = (3.0, 10.0)
TWO_AT_ONCE = 0.3  # the share of turns with a second fault


@dataclass(frozen=True)
class Turn:
    """One or two faults, both at the server with that index: the other one is there all the time.

    ``rng``: for what the faults themselves choose.
    """

    names: list[str]
    server: int
    lasts_s: float
    rng: random.Random


def schedule(names: Sequence[str], seed: int) -> Iterator[Turn]:
    """Endless; every fault has had its turn before one comes again."""
    rng = random.Random(seed)
    while True:
        left = rng.sample(names, len(names))
        while left:
            number = 1 + (len(left) > 1 and rng.random() < TWO_AT_ONCE)
            chosen = [left.pop() for _ in range(number)]
            yield Turn(chosen, rng.randrange(2), rng.uniform(*LASTS_S), random.Random(rng.random()))
