"""Keeps the first step of an ensemble from running ahead of the networks, so that pictures wait before they are decoded.

Decoding is quick beside the networks, and Triton's ensembles have no limit of their own. Under too much load the first
step would empty its queue at once, and a later step's full queue would refuse what was decoded for nothing.
"""

import time
from pathlib import Path

from rcnn_backend.contract.chain_types import Chain
from rcnn_backend.contract.executions import executions_of

LOOK_EVERY_S = 0.005


class Brake:
    """A context for each execution of the first step: waits while the execution before has not reached the networks.

    It has not, as long as every instance of the networks is still at the requests that it had then. Where the networks
    write no numbers of their executions (see ``contract/executions.py``), nothing waits.

    Args:
        model: the engine that the first step's outputs go to.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._busy_with: dict[Path, int] = {}  # the instances' numbers when the last execution ended

    def __enter__(self) -> None:
        while (numbers := executions_of(self._model)) and numbers == self._busy_with:
            if any(number % 2 == 0 for number in numbers.values()):
                break  # an instance is idle
            time.sleep(LOOK_EVERY_S)

    def __exit__(self, *_: object) -> None:
        self._busy_with = executions_of(self._model)


def open_brake(model: str, chain: Chain, step: str) -> Brake | None:
    """The brake of a model that is its family's first step; None for any other step."""
    if step != chain.steps[0].name:
        return None
    return Brake(f"{model.removesuffix(step)}{chain.engines[0].name}")
