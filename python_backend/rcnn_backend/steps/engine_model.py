"""The Triton model that runs an engine, which every ``backends/<name>/model.py`` imports.

Imported inside Triton's Python stub only.
"""

from pathlib import Path
from typing import Any

from rcnn_backend.contract.parameters import read_threads
from rcnn_backend.engines.load import load_engine
from rcnn_backend.steps.step import Step, Tensors


class TritonPythonModel:
    """Runs the requests of one execution as one batch, on the instance's GPU or on the CPU.

    The config's parameter ``intra_op_thread_count`` has the same meaning as in Triton's own onnxruntime
    backend: how many threads one run uses on the CPU, 0 for one per core.
    """

    def initialize(self, args: dict[str, str]) -> None:
        self.step = Step(args)
        self.outputs = [output["name"] for output in self.step.config["output"]]
        version_dir = Path(args["model_repository"]) / args["model_version"]
        self.engine = load_engine(version_dir, self.step.device, read_threads(self.step.config))

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.step.answer_together(requests, self._run)

    def finalize(self) -> None:
        del self.engine  # before its CUDA context is destroyed

    def _run(self, inputs: Tensors, options: list[Any]) -> Tensors:
        outputs = self.engine.run(inputs)
        return {name: outputs[name] for name in self.outputs}
