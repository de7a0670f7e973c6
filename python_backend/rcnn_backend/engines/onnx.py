"""ONNX files on the CPU, run by OpenVINO: NumPy arrays in and out."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rcnn_backend.devices import Array
from rcnn_backend.errors import RepositoryError
from rcnn_backend.operators.openvino_runtime import VERSION, compile_network, run_network

Tensors = Mapping[str, Array]
NOT_A_REASON = ("Exception from", "Check '", "To facilitate")  # OpenVINO's source lines and its advice


class OnnxEngine:
    """``model.onnx`` in OpenVINO on the CPU, one image at a time: batches take more memory and save no time per image.

    Args:
        path: the ONNX file.
        threads: how many threads a run uses; 0 means one for each core that this process may use.

    Raises:
        RepositoryError: the file cannot be loaded.
    """

    is_capturable = False

    def __init__(self, path: Path, threads: int = 0) -> None:
        try:
            self._network = compile_network(path.read_bytes(), threads)
        except (OSError, RuntimeError) as error:
            lines = [line.strip(" -.") for line in str(error).splitlines()]
            reason = ". ".join(line for line in lines if line and not line.startswith(NOT_A_REASON))
            raise RepositoryError(
                f"OpenVINO {VERSION} cannot load {path}: {reason}. Export the detector again with rcnn-export"
            ) from error
        self._outputs = [output.any_name for output in self._network.outputs]

    def run(self, inputs: Tensors) -> dict[str, Array]:
        images = len(next(iter(inputs.values())))
        parts = [
            run_network(self._network, {name: array[image : image + 1] for name, array in inputs.items()})
            for image in range(images)
        ]
        joined = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return dict(zip(self._outputs, joined, strict=True))
