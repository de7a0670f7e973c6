"""Step 5: the header's scores and boxes -> detections."""

import functools
from typing import Any

from rcnn_backend.contract.chain import FASTER_RCNN
from rcnn_backend.contract.parameters import DetectionParameters, read_parameters
from rcnn_backend.operators.detections import detect, override, warm_up
from rcnn_backend.steps.step import Step, Tensors


class TritonPythonModel:
    """Answers all requests of an execution as one batch, each with its own thresholds."""

    def initialize(self, args: dict[str, str]) -> None:
        self.step = Step(args, FASTER_RCNN, "detections")
        self.parameters = read_parameters(DetectionParameters, self.step.config)
        self.step.run(warm_up, self.parameters, self.step.device)

    def execute(self, requests: list[Any]) -> list[Any]:
        read_options = functools.partial(override, self.parameters)
        return self.step.answer_together(requests, self._detect, read_options=read_options)

    def _detect(self, tensors: Tensors, parameters: list[DetectionParameters]) -> Tensors:
        found = detect(
            tensors["class_scores"],
            tensors["class_boxes"],
            tensors["num_proposals"],
            tensors["image_sizes"],
            parameters,
            self.parameters.detections_per_img,
        )
        # On the host: no later step would notice if Triton lost these.
        return dict(zip(found._fields, self.step.device.download(found), strict=True))
