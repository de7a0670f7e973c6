"""One interface to the engine files of a model: named arrays in, named arrays out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from rcnn_backend.devices import Array, Cpu, Device, Gpu
from rcnn_backend.errors import RepositoryError

Tensors = Mapping[str, Array]
AT_ONCE = 2  # on a CPU: more images take more memory and no less time each
ENGINE_ORDER = ("model.plan", "model.pt2", "model.onnx")  # a plan's graph lies beside it


class Engine(Protocol):
    """A network that runs: RPN or header, whatever the runtime.

    ``is_capturable``: a run of a shape that ran before can become part of a CUDA graph.
    """

    is_capturable: bool

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Runs one batch; every input and output by its tensor name, on the engine's device."""


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
    """An ONNX Runtime session that tells its faults in one sentence and its warnings not at all.

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


def find_engine(version_dir: Path) -> Path:
    """The engine of a model's version folder that is used when none is named.

    Raises:
        RepositoryError: there is none.
    """
    for name in ENGINE_ORDER:
        if (version_dir / name).is_file():
            return version_dir / name
    raise RepositoryError(
        f"there is no {' or '.join(ENGINE_ORDER)} in {version_dir}: write it with rcnn-export"
    )


def load_engine(
    version_dir: Path,
    device: Device | None = None,
    intra_op_threads: int = 0,
    inter_op_threads: int = 0,
    file_name: str = "",
) -> Engine:
    """Loads the engine of a model's version folder, e.g. ``model_repository/faster_rcnn_rpn/1``.

    Args:
        device: where it runs; the CPU by default. The numbers of threads are ONNX Runtime's there.
        file_name: of the engine; by default the first of ENGINE_ORDER that is there.

    Raises:
        RepositoryError: there is none, or it cannot be loaded.
    """
    path = version_dir / file_name if file_name else find_engine(version_dir)
    if not path.is_file():
        raise RepositoryError(f"there is no engine {path}: write it with rcnn-export")
    if path.name == "model.plan":
        from rcnn_backend.engines.tensorrt import TensorRTEngine  # needs TensorRT

        return TensorRTEngine(path, device or Cpu())
    if path.name == "model.pt2":
        from rcnn_backend.engines.aoti import TorchEngine  # needs PyTorch

        return TorchEngine(path, device or Cpu())
    if isinstance(device, Gpu):
        from rcnn_backend.engines.onnx_gpu import OnnxGpuEngine  # needs CuPy

        return OnnxGpuEngine(path, device)
    return OnnxEngine(path, intra_op_threads, inter_op_threads)
