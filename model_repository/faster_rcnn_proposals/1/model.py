"""Step 3: the RPN's boxes -> NMS -> proposals and their RoIAligned features."""

from typing import Any

from rcnn_backend.contract.chain import FASTER_RCNN
from rcnn_backend.contract.chain_types import pyramid
from rcnn_backend.contract.parameters import PoolParameters, ProposalParameters, read_parameters
from rcnn_backend.operators.proposals import propose, warm_up
from rcnn_backend.steps.step import Step, Tensors


class TritonPythonModel:
    """Answers all requests of an execution as one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        self.step = Step(args, FASTER_RCNN, "proposals")
        self.parameters = read_parameters(ProposalParameters, self.step.config)
        self.pooling = read_parameters(PoolParameters, self.step.config)
        self.step.run(warm_up, self.parameters, self.pooling, self.step.device)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.step.answer_together(requests, self._propose)

    def _propose(self, tensors: Tensors, options: list[Any]) -> Tensors:
        proposals = propose(
            tensors["rpn_boxes"], pyramid(tensors), tensors["image_sizes"], self.parameters, self.pooling
        )
        return {
            "proposals": proposals.boxes,
            "roialigned_feature": proposals.roialigned_feature,
            "num_proposals": proposals.num_proposals,
        }
