"""A head that runs on the final detections: from the pyramid's features to the head's answers."""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from rcnn_backend.contract.chain import DETECTED_LABELS, RLES
from rcnn_backend.contract.chain_types import Chain, ChainStep
from rcnn_backend.contract.parameters import HeadParameters, PoolParameters, RleParameters
from rcnn_backend.devices import Array, Device, Gpu
from rcnn_backend.engines.load import Engine
from rcnn_backend.operators import rles as pasting
from rcnn_backend.operators.detections import Detections
from rcnn_backend.operators.heads import ANSWERS, HeadOutput, pool_detections, run_packed


@dataclass(frozen=True)
class Head:
    """The head of a family, such as ``mask``, on a device."""

    chain: Chain
    device: Device
    engine: Engine
    parameters: HeadParameters
    pooling: PoolParameters
    rle_parameters: RleParameters | None  # only for a family with masks

    @property
    def answering_steps(self) -> tuple[ChainStep, ...]:
        """The steps after the engine; each computes some of the answers."""
        return self.chain.head_steps[2:]

    def answer(
        self,
        features: Sequence[Array],
        found: Detections,
        image_sizes: Array,
        wanted: Collection[str],
        rle_parameters: Sequence[RleParameters],
    ) -> Detections:
        """The detections together with the wanted answers of the head. Waits for the number of detections.

        Args:
            features: pyramid levels [B, C, h, w], finest first.
            image_sizes: float32 [B, 4]: resized height and width, original height and width.
            wanted: names of answers. If none of them is the head's, the head does not run.
            rle_parameters: those of each image.
        """
        answering = [
            step for step in self.answering_steps if any(output.name in wanted for output in step.outputs)
        ]
        if not answering:
            return found
        (counts,) = self.device.download([found.num_detections])
        pooled = pool_detections(features, found.detected_boxes, counts, self.parameters, self.pooling)
        rows = run_packed(self._network, pooled, found.labels, counts, self.parameters)
        made = HeadOutput(rows, found.detected_boxes, image_sizes, counts, rle_parameters)
        answers = [ANSWERS[step.name](made) for step in answering]
        return found._replace(of_head={name: array for each in answers for name, array in each.items()})

    def run(self, pooled: Array, labels: Array) -> Array:
        """The engine's output [B, M, ...] for pooled features [B, M, C, h, w] and labels [B, D]."""
        step = self.chain.step(f"{self.chain.head}_header")
        features, *also = step.inputs
        inputs = {features.name: pooled} | ({DETECTED_LABELS.name: labels} if DETECTED_LABELS in also else {})
        (made,) = step.outputs
        return self.engine.run(inputs)[made.name]

    def warm_up(self, features: Sequence[Array], image_sizes: Array, detections_per_img: int) -> None:
        """Runs the head twice for each number of detections that it pads to, the largest first, so that it is captured.

        Args:
            features, image_sizes: as for ``answer``.
        """
        if self.rle_parameters:
            pasting.warm_up(self.device)
        batch = len(image_sizes)
        answers = [tensor.name for tensor in self.chain.answers if tensor != RLES]
        boxes, scores = (np.zeros((batch, detections_per_img, *shape), np.float32) for shape in ((4,), ()))
        labels = np.zeros((batch, detections_per_img), np.int64)
        for count in [each for each in reversed(self.parameters.padded_counts) for _ in range(2)]:
            counts = np.full((batch, 1), count, np.int32)
            blank = [self.device.upload(array) for array in (boxes, scores, labels, counts, boxes)]
            self.answer(features, Detections(*blank), image_sizes, answers, ())

    @functools.cached_property
    def _network(self) -> Callable[[Array, Array], Array]:
        """``run``, as one CUDA graph for each batch size and number of rows if the device and the engine allow it."""
        if not (isinstance(self.device, Gpu) and self.engine.is_capturable):
            return self.run
        from rcnn_backend.engines.graphs import GraphCache  # needs CuPy

        graphs = GraphCache(lambda pooled, labels: [self.run(pooled, labels)], self.device)
        return lambda pooled, labels: graphs(pooled, labels)[0]
