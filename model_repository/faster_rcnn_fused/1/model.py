"""The whole detector in one process: pictures, encoded or as pixels -> detections."""

import functools
from pathlib import Path
from typing import Any

from rcnn_backend.contract.chain import FASTER_RCNN, FUSED
from rcnn_backend.operators.detections import override
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.steps.step import Request, Step, Tensors


class TritonPythonModel:
    """Runs the steps and the engines of the detector whose folders lie beside this one's.

    The model is named ``<detector>_fused``, or as the detector itself.
    """

    def initialize(self, args: dict[str, str]) -> None:
        self.step = Step(args, FASTER_RCNN, "detections")
        repository, name = Path(args["model_repository"]).parent, args["model_name"]
        detector = name if (repository / f"{name}_preprocess").exists() else name.removesuffix(f"_{FUSED}")
        self.pipeline = Pipeline.load(repository, detector, self.step.device)
        self.step.run(self.pipeline.warm_up, self.step.config["max_batch_size"])

    def execute(self, requests: list[Any]) -> list[Any]:
        read_options = functools.partial(override, self.pipeline.detection_parameters)
        return self.step.answer_each(requests, self._detect, read_options=read_options)

    def finalize(self) -> None:
        del self.pipeline  # its engines, before the CUDA context that they live in

    def _detect(self, requests: list[Request]) -> list[Tensors | Exception]:
        decoded = self.pipeline.decoder.read_requests([request.tensors for request in requests])
        good = [
            (images, request.options)
            for images, request in zip(decoded, requests, strict=True)
            if not isinstance(images, Exception)
        ]
        found = iter(self.pipeline.detect_requests(good))
        results = [images if isinstance(images, Exception) else next(found) for images in decoded]
        answers = [tensor.name for tensor in self.pipeline.chain.answers]
        return [
            result if isinstance(result, Exception) else {name: result.answer(name) for name in answers}
            for result in results
        ]
