"""Step 6 of Mask and Keypoint R-CNN: the detected boxes -> their RoIAligned features."""

import json
from typing import Any

from rcnn_backend.contract.chain_types import pyramid
from rcnn_backend.contract.find_chain import chain_of_step
from rcnn_backend.contract.parameters import HeadParameters, PoolParameters, read_parameters
from rcnn_backend.operators.heads import pool_detections
from rcnn_backend.steps.step import Step, Tensors


class TritonPythonModel:
    """Answers all requests of an execution as one batch, padded to the same number of detections."""

    def initialize(self, args: dict[str, str]) -> None:
        outputs = [output["name"] for output in json.loads(args["model_config"])["output"]]
        self.name = outputs[0]  # the name of the step and of its output
        self.step = Step(args, chain_of_step(self.name, outputs), self.name)
        self.parameters = read_parameters(HeadParameters, self.step.config)
        self.pooling = read_parameters(PoolParameters, self.step.config)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.step.answer_together(requests, self._pool)

    def _pool(self, tensors: Tensors, options: list[Any]) -> Tensors:
        (counts,) = self.step.device.download([tensors["num_detected"]])
        boxes = tensors["detected_boxes"]
        return {self.name: pool_detections(pyramid(tensors), boxes, counts, self.parameters, self.pooling)}
