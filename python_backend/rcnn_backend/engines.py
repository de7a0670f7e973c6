"""One interface to the engine files of a model: named arrays in, named arrays out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnxruntime

from rcnn_backend.devices import Array, Cpu, Device, Gpu
from rcnn_backend.errors import RepositoryError

Tensors = Mapping[str, Array]


class Engine(Protocol):
    """A network that runs: RPN or header, whatever the runtime."""

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Runs one batch; every input and output by its tensor name, on the engine's device."""


class OnnxEngine:
    """``model.onnx`` in ONNX Runtime on the CPU, NumPy arrays in and out.

    Args:
        path: the ONNX file.
        intra_op_threads: threads within an operator; 0 means one a core.
        inter_op_threads: operators run side by side; above 1 the graph runs in parallel mode.

    Raises:
        RepositoryError: the file cannot be loaded.
    """

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
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


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


def load_engine(
    version_dir: Path, device: Device | None = None, intra_op_threads: int = 0, inter_op_threads: int = 0
) -> Engine:
    """Loads the engine of a model's version folder, e.g. ``model_repository/faster_rcnn_rpn/1``.

    Args:
        device: where it runs; the CPU by default. The numbers of threads are ONNX Runtime's there.

    Raises:
        RepositoryError: there is none, or it cannot be loaded.
    """
    onnx, package = version_dir / "model.onnx", version_dir / "model.pt2"
    if package.is_file():
        from rcnn_backend.torch_engine import TorchEngine  # needs PyTorch

        return TorchEngine(package, device or Cpu())
    if not onnx.is_file():
        raise RepositoryError(f"there is no engine {onnx} or {package.name}: write it with rcnn-export")
    if isinstance(device, Gpu):
        from rcnn_backend.gpu.engines import OnnxGpuEngine  # needs CuPy

        return OnnxGpuEngine(onnx, device)
    return OnnxEngine(onnx, intra_op_threads, inter_op_threads)
