"""Step 5: the header's scores and boxes -> detections."""

import functools
import json
from typing import Any

from rcnn_backend.contract.chain import MASKS
from rcnn_backend.contract.find_chain import chain_of_step
from rcnn_backend.contract.parameters import DetectionParameters, read_parameters
from rcnn_backend.operators.detections import detect, override, warm_up
from rcnn_backend.steps.step import Step, Tensors


class TritonPythonModel:
    """Answers all requests of an execution as one batch, each with its own thresholds."""

    def initialize(self, args: dict[str, str]) -> None:
        outputs = [output["name"] for output in json.loads(args["model_config"])["output"]]
        chain = chain_of_step("detections", outputs)
        self.has_masks = MASKS in chain.answers
        self.outputs = [tensor.name for tensor in chain.step("detections").outputs]
        self.step = Step(args, chain, "detections")
        self.parameters = read_parameters(DetectionParameters, self.step.config)
        self.step.run(warm_up, self.parameters, self.step.device)

    def execute(self, requests: list[Any]) -> list[Any]:
        read_options = functools.partial(override, self.parameters, has_masks=self.has_masks)
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
        # Answers are copied to the host, because no later step would notice if Triton lost them on the GPU.
        hosts = self.step.device.download([getattr(found, name) for name in self.outputs])
        return dict(zip(self.outputs, hosts, strict=True))
