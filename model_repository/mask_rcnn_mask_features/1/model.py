"""Step 6 of Mask R-CNN: the detected boxes -> their RoIAligned features."""

from typing import Any

from rcnn_backend.contract.chain import MASK_RCNN, pyramid
from rcnn_backend.contract.parameters import HeadParameters, PoolParameters, read_parameters
from rcnn_backend.operators.heads import pool_detections
from rcnn_backend.steps.step import Step, Tensors


class TritonPythonModel:
    """Answers all requests of an execution as one batch, padded to the same number of detections."""

    def initialize(self, args: dict[str, str]) -> None:
        self.step = Step(args, MASK_RCNN, "mask_features")
        self.parameters = read_parameters(HeadParameters, self.step.config)
        self.pooling = read_parameters(PoolParameters, self.step.config)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.step.answer_together(requests, self._pool)

    def _pool(self, tensors: Tensors, options: list[Any]) -> Tensors:
        (counts,) = self.step.device.download([tensors["num_detected"]])
        boxes = tensors["detected_boxes"]
        pooled = pool_detections(pyramid(tensors), boxes, counts, self.parameters, self.pooling)
        return {"mask_features": pooled}
