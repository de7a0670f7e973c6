"""How far the first step of an ensemble runs ahead of the detections, so that pictures wait before they are decoded.

Imported inside Triton's Python stub only. Decoding is quick beside the networks, and Triton's ensembles have no limit of
their own. Under too much load the first step would empty its queue at once, and the full queue of a later step
would refuse what was decoded for nothing. So the first step waits while enough images are on their way, its
queue fills, and it refuses what is too much.
"""

import contextlib
import functools
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from rcnn_backend.contract.configs import read_steps
from rcnn_backend.contract.find_chain import detector_of

BATCHES_ON_CPU, BATCHES_ON_GPU = 0.5, 4.0  # on a GPU every step computes at the same time
LOOK_EVERY_S = 0.005
IDLE_LOOKS = (
    40  # looks and not seconds: on a busy machine the next step begins later, and the looks are rarer
)


class Flow:
    """Counts the images of one detector between its first step and its detections, over the processes of all steps.

    The counts are metrics, which Triton keeps for all processes.

    Args:
        detector: the name of the ensemble.
        limit: how many images may be on their way before the first step waits.
    """

    def __init__(self, detector: str, limit: int) -> None:
        self._limit = limit
        labels = {"model": detector}
        gauge = pb_utils.MetricFamily.GAUGE
        self._families = [
            pb_utils.MetricFamily(name=name, description=description, kind=gauge)
            for name, description in (
                ("rcnn_images_in_flight", "Images between the first step of an ensemble and its detections"),
                ("rcnn_steps_executing", "Steps of an ensemble that compute"),
            )
        ]
        self._images, self._executing = (family.Metric(labels=labels) for family in self._families)

    @contextlib.contextmanager
    def executing(self) -> Iterator[None]:
        """While a step computes."""
        self._executing.increment(1)
        try:
            yield
        finally:
            self._executing.increment(-1)

    def wait(self) -> None:
        """Returns when fewer images than the limit are on their way.

        An image whose request is cancelled on the way never arrives. Such images are forgotten when no step has computed
        anything for a while.
        """
        if self._images.value() < 0:  # some were forgotten that did arrive
            self._images.set(0)
        idle_looks = 0
        while self._images.value() >= self._limit:
            time.sleep(LOOK_EVERY_S)
            idle_looks = 0 if self._executing.value() > 0 else idle_looks + 1
            if idle_looks == IDLE_LOOKS:
                self._images.set(0)

    def send(self, images: int) -> None:
        """Counts images that the first step passes on."""
        self._images.increment(images)

    def receive(self, images: int) -> None:
        """Counts images that reach the detections."""
        self._images.increment(-images)


def open_flow(args: Mapping[str, str], config: Mapping[str, Any], *, is_gpu: bool) -> Flow | None:
    """The flow through the ensemble that a model is a step of; None for a model that is no step.

    Args:
        args: what Triton gives the model.
        config: the model's.
    """
    steps_of = functools.partial(read_steps, Path(args["model_repository"]).parent)
    detector = detector_of(args["model_name"], steps_of)
    if detector is None or args["model_name"] not in steps_of(detector):
        return None
    batches = BATCHES_ON_GPU if is_gpu else BATCHES_ON_CPU
    return Flow(detector, math.ceil(config["max_batch_size"] * batches) * _count_instances(config))


def _count_instances(config: Mapping[str, Any]) -> int:
    groups = config.get("instance_group") or [{}]
    return sum(group.get("count", 1) * max(1, len(group.get("gpus", ()))) for group in groups)
