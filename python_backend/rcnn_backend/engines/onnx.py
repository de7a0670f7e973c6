"""ONNX Runtime on the CPU: NumPy arrays in and out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from rcnn_backend.devices import Array
from rcnn_backend.errors import RepositoryError

AT_ONCE = 2  # more images take more memory and no less time each
Tensors = Mapping[str, Array]


class OnnxEngine:
    """``model.onnx`` in ONNX Runtime on the CPU, NumPy arrays in and out; AT_ONCE images at a time.

    Args:
        path: the ONNX file.
        intra_op_threads: threads within an operator; 0 means one a core.
        inter_op_threads: operators run side by side; above 1 the graph runs in parallel mode.

    Raises:
        RepositoryError: the file cannot be loaded.
    """

    is_capturable = False

    def __init__(self, path: Path, intra_op_threads: int = 0, inter_op_threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = inter_op_threads
        if inter_op_threads > 1:
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        # ONNX Runtime remembers one for each new shape of pictures: memory that grows, and no time won.
        options.enable_mem_pattern = False
        # A worker that spins between runs takes its core from the pipeline's next step.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = open_session(path, options, ["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Tensors) -> dict[str, Array]:
        images = len(next(iter(inputs.values())))
        parts = [
            self._session.run(
                self._outputs, {name: array[first : first + AT_ONCE] for name, array in inputs.items()}
            )
            for first in range(0, images, AT_ONCE)
        ]
        joined = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return dict(zip(self._outputs, joined, strict=True))


def open_session(
    path: Path, options: onnxruntime.SessionOptions, providers: Sequence[Any]
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session whose faults are told in one sentence. Its warnings are not shown.

    Raises:
        RepositoryError: the file cannot be loaded.
    """
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        raise RepositoryError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}. "
            "Export the detector again with rcnn-export"
        ) from error
