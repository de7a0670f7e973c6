"""The engines that rcnn-verify runs, each on the device that it needs. The steps between them run on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from rcnn_backend.contract.manifest import read_manifest
from rcnn_backend.devices import Cpu, Device, Gpu
from rcnn_backend.engines.load import Engine, find_engine, load_engine
from rcnn_backend.errors import RepositoryError
from rcnn_backend.pipeline import Pipeline

from rcnn_export.engines.options import AOTI, CUDNN, ENGINE_FILES, TENSORRT


class HostEngine:
    """An engine on a GPU that takes and returns NumPy arrays."""

    is_capturable = False

    def __init__(self, engine: Engine, device: Device) -> None:
        self._engine, self._device = engine, device

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        with self._device.active():
            outputs = self._engine.run({name: self._device.upload(array) for name, array in inputs.items()})
            hosts = self._device.download(list(outputs.values()))
            return dict(zip(outputs, hosts, strict=True))


def load_pipeline(repository: Path, name: str, engine: str = "") -> Pipeline:
    """The detector ``name``, entirely on the CPU except for engines that need a GPU.

    Args:
        engine: one of ENGINE_FILES; by default the engine that a server would load.

    Raises:
        RepositoryError: something is missing, or cannot run here.
    """

    def load(version_dir: Path, device: Device) -> Engine:
        path = version_dir / ENGINE_FILES[engine] if engine else find_engine(version_dir)
        if not _needs_gpu(path):
            return load_engine(version_dir, device, file_name=path.name)
        gpu = _open_gpu()
        return HostEngine(load_engine(version_dir, gpu, file_name=path.name), gpu)

    return Pipeline.load(repository, name, Cpu(), load)


def _needs_gpu(path: Path) -> bool:
    if path.name == ENGINE_FILES[AOTI] and path.is_file():
        target: str = read_manifest(path.parent)["engines"][path.name]["target"]
        return target.startswith("cuda")
    if path.name == ENGINE_FILES[CUDNN] and path.is_file():
        return torch.cuda.is_available()  # cuDNN runs it on a GPU, torch's own operators elsewhere
    return path.name == ENGINE_FILES[TENSORRT] and path.is_file()


def _open_gpu() -> Gpu:
    try:
        return Gpu(0)
    except Exception as error:  # no CuPy, no driver, no device: each raises a different exception
        raise RepositoryError(
            f"these engines run on an NVIDIA GPU, and none can be used here ({type(error).__name__}: {error}). Verify on a "
            "machine with one, with `pip install 'rcnn-backend[gpu]'`; --engine onnx verifies the graphs that plans are "
            "built from"
        ) from error
