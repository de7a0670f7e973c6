"""Step 8 of Mask R-CNN: the mask header's probabilities -> masks, a row for each row of boxes."""

from typing import Any

from rcnn_backend.contract.chain import MASK_RCNN
from rcnn_backend.operators.heads import pad_rows, real_rows
from rcnn_backend.steps.step import Step, Tensors


class TritonPythonModel:
    """Answers all requests of an execution as one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        self.step = Step(args, MASK_RCNN, "masks")
        (masks,) = self.step.config["output"]
        self.detections_per_img = int(masks["dims"][0])

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.step.answer_together(requests, self._pad)

    def _pad(self, tensors: Tensors, options: list[Any]) -> Tensors:
        # Answers are copied to the host, because no later step would notice if Triton lost them on the GPU.
        probabilities, counts = self.step.device.download(
            [tensors["mask_probabilities"], tensors["num_detected"]]
        )
        masks = pad_rows(real_rows(probabilities, counts), counts, self.detections_per_img)
        return {"masks": masks}
