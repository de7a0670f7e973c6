"""One interface for all engine files of a model: named arrays in, named arrays out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from rcnn_backend.devices import Array, Cpu, Device, Gpu
from rcnn_backend.errors import RepositoryError

Tensors = Mapping[str, Array]
# model.plan comes before model.onnx, because a plan's folder also has its graph.
ENGINE_ORDER = ("model.plan", "model.pt2", "model.cudnn.pt2", "model.onnx")


class Engine(Protocol):
    """A network that can run, RPN or header, in any runtime. On the CPU, several threads may run it at once.

    ``is_capturable``: whether a run can be captured in a CUDA graph once its shapes have run before.
    """

    is_capturable: bool

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Runs one batch. Inputs and outputs are keyed by tensor name, and are on the engine's device."""


def find_engine(version_dir: Path) -> Path:
    """The engine file in a model's version folder that is used by default.

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
    threads: int = 0,
    file_name: str = "",
) -> Engine:
    """Loads the engine of a model's version folder, e.g. ``model_repository/faster_rcnn_rpn/1``.

    Args:
        device: where the engine runs; by default the CPU.
        threads: how many threads the engine of an ONNX file uses on the CPU; 0 means one for each core.
        file_name: the engine's file; by default the first of ENGINE_ORDER that exists.

    Raises:
        RepositoryError: there is no engine, or it cannot be loaded.
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
    if path.name == "model.cudnn.pt2":
        from rcnn_backend.engines.cudnn import CudnnEngine  # needs PyTorch

        return CudnnEngine(path, device or Cpu())
    if isinstance(device, Gpu):
        from rcnn_backend.engines.onnx_gpu import OnnxGpuEngine  # needs CuPy

        return OnnxGpuEngine(path, device)
    from rcnn_backend.engines.onnx import OnnxEngine  # needs OpenVINO

    return OnnxEngine(path, threads)
