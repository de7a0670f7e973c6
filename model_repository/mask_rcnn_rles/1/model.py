"""Step 9 of Mask R-CNN: the mask header's probabilities -> COCO run-length codes of the picture as sent."""

import functools
from typing import Any

from rcnn_backend.contract.chain import MASK_RCNN
from rcnn_backend.contract.parameters import RleParameters, read_parameters
from rcnn_backend.operators.rles import encode_rles, override, warm_up
from rcnn_backend.steps.step import Step, Tensors


class TritonPythonModel:
    """Answers all requests of an execution as one batch, each with its own threshold."""

    def initialize(self, args: dict[str, str]) -> None:
        self.step = Step(args, MASK_RCNN, "rles")
        self.parameters = read_parameters(RleParameters, self.step.config)
        self.step.run(warm_up, self.step.device)

    def execute(self, requests: list[Any]) -> list[Any]:
        read_options = functools.partial(override, self.parameters)
        return self.step.answer_together(requests, self._encode, read_options=read_options)

    def _encode(self, tensors: Tensors, parameters: list[RleParameters]) -> Tensors:
        boxes, counts, image_sizes = self.step.device.download(
            [tensors["detected_boxes"], tensors["num_detected"], tensors["image_sizes"]]
        )
        return {"rles": encode_rles(tensors["mask_probabilities"], boxes, counts, image_sizes, parameters)}
