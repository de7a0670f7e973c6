"""Step 1: pictures, encoded or as pixels -> the RPN's input."""

from typing import Any

from rcnn_backend.contract.chain import FASTER_RCNN
from rcnn_backend.contract.parameters import PreprocessParameters, read_dtype, read_parameters
from rcnn_backend.operators.decode import ImageDecoder
from rcnn_backend.operators.preprocess import preprocess_requests, warm_up
from rcnn_backend.steps.step import Request, Step, Tensors


class TritonPythonModel:
    """Decodes all pictures of an execution. The pictures of each request form one batch, padded to that batch's size."""

    def initialize(self, args: dict[str, str]) -> None:
        self.step = Step(args, FASTER_RCNN, "preprocess")
        self.parameters = read_parameters(PreprocessParameters, self.step.config)
        self.dtype = read_dtype(self.step.config, "input")
        self.decoder = ImageDecoder(self.parameters, self.step.device)
        self.step.run(warm_up, self.parameters, self.step.device, self.dtype)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.step.answer_each(requests, self._preprocess)

    def _preprocess(self, requests: list[Request]) -> list[Tensors | Exception]:
        decoded = self.decoder.read_requests([request.tensors for request in requests])
        good = [images for images in decoded if not isinstance(images, Exception)]
        made = iter(preprocess_requests(good, self.parameters, self.dtype))
        return [
            images
            if isinstance(images, Exception)
            else dict(zip(("input", "image_sizes"), next(made), strict=True))
            for images in decoded
        ]
