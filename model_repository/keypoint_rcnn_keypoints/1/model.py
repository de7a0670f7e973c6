"""Step 8 of Keypoint R-CNN: heatmaps in the frames of the boxes -> keypoints in the picture as sent."""

from typing import Any

from rcnn_backend.contract.chain import KEYPOINT_RCNN
from rcnn_backend.contract.parameters import read_dtype
from rcnn_backend.operators.heads import HeadOutput, answer_keypoints, real_rows
from rcnn_backend.operators.keypoints import warm_up
from rcnn_backend.steps.step import Step, Tensors


class TritonPythonModel:
    """Answers all requests of an execution as one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        self.step = Step(args, KEYPOINT_RCNN, "keypoints")
        self.step.run(warm_up, self.step.device, read_dtype(self.step.config, "heatmaps"))

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.step.answer_together(requests, self._find)

    def _find(self, tensors: Tensors, options: list[Any]) -> Tensors:
        (counts,) = self.step.device.download([tensors["num_detected"]])
        heatmaps = real_rows(tensors["heatmaps"], counts)
        found = answer_keypoints(
            HeadOutput(heatmaps, tensors["detected_boxes"], tensors["image_sizes"], counts)
        )
        # Answers are copied to the host, because no later step would notice if Triton lost them on the GPU.
        return dict(zip(found, self.step.device.download(list(found.values())), strict=True))
