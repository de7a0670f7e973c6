"""Step 3: the RPN's boxes -> NMS -> proposals and their RoIAligned features."""

import json
from typing import Any

from rcnn_backend import triton_io
from rcnn_backend.parameters import ProposalParameters, read_parameters
from rcnn_backend.pipeline import pyramid
from rcnn_backend.proposals import propose


class TritonPythonModel:
    """Answers all requests of an execution as one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        self.parameters = read_parameters(ProposalParameters, json.loads(args["model_config"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        return triton_io.answer_together(requests, self._propose)

    def _propose(self, tensors: triton_io.Tensors, options: list[Any]) -> triton_io.Tensors:
        proposals = propose(tensors["rpn_boxes"], pyramid(tensors), tensors["image_sizes"], self.parameters)
        return {
            "proposals": proposals.boxes,
            "roialigned_feature": proposals.roialigned_feature,
            "num_proposals": proposals.num_proposals,
        }
