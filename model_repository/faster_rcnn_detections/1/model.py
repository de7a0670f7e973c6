"""Step 5: the header's scores and boxes -> detections."""

import functools
import json
from typing import Any

from rcnn_backend import triton_io
from rcnn_backend.detections import detect, override
from rcnn_backend.parameters import DetectionParameters, read_parameters


class TritonPythonModel:
    """Answers all requests of an execution as one batch, each with its own thresholds."""

    def initialize(self, args: dict[str, str]) -> None:
        self.parameters = read_parameters(DetectionParameters, json.loads(args["model_config"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        return triton_io.answer_together(requests, self._detect, functools.partial(override, self.parameters))

    def _detect(self, tensors: triton_io.Tensors, parameters: list[DetectionParameters]) -> triton_io.Tensors:
        return detect(
            tensors["class_scores"],
            tensors["class_boxes"],
            tensors["num_proposals"],
            tensors["image_sizes"],
            parameters,
            self.parameters.detections_per_img,
        )._asdict()
