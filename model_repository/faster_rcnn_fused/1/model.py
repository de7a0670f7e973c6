"""The whole detector in one process: pictures, encoded or as pixels -> detections."""

from pathlib import Path
from typing import Any

from rcnn_backend.contract.chain import FASTER_RCNN
from rcnn_backend.contract.chain_types import FUSED
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.steps.step import Request, Step, Tensors


class TritonPythonModel:
    """Runs the steps and the engines of the detector, whose folders are next to this one.

    The model has the name ``<detector>_fused``, or the name of the detector itself.
    """

    def initialize(self, args: dict[str, str]) -> None:
        self.step = Step(args, FASTER_RCNN, "detections")
        repository, name = Path(args["model_repository"]).parent, args["model_name"]
        detector = name if (repository / f"{name}_preprocess").exists() else name.removesuffix(f"_{FUSED}")
        self.pipeline = Pipeline.load(repository, detector, self.step.device)
        self.step.run(self.pipeline.warm_up, self.step.config["max_batch_size"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.step.answer_each(requests, self._detect, read_options=self.pipeline.read_options)

    def finalize(self) -> None:
        del self.pipeline  # frees the engines before the CUDA context that they use

    def _detect(self, requests: list[Request]) -> list[Tensors | Exception]:
        decoded = self.pipeline.decoder.read_requests([request.tensors for request in requests])
        good = [
            (images, request.options._replace(wanted=request.wanted))
            for images, request in zip(decoded, requests, strict=True)
            if not isinstance(images, Exception)
        ]
        found = iter(self.pipeline.detect_requests(good))
        results = [images if isinstance(images, Exception) else next(found) for images in decoded]
        # All the answers that were computed; Triton sends those that a request asks for.
        return [result if isinstance(result, Exception) else result.answers for result in results]
