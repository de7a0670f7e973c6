"""AOTInductor packages: NumPy arrays in and out on the CPU, CuPy arrays on a GPU. Needs PyTorch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from rcnn_backend.contract.manifest import read_manifest
from rcnn_backend.devices import Array, Device, Gpu
from rcnn_backend.errors import RepositoryError


class TorchEngine:
    """``model.pt2``, with the tensors' names from the manifest beside it.

    Raises:
        RepositoryError: the package was compiled for another device or by another PyTorch, or cannot
            be loaded.
    """

    def __init__(self, path: Path, device: Device) -> None:
        self._device = device
        self.is_capturable = device.is_gpu
        torch_device, index = torch.device("cpu"), -1
        if isinstance(device, Gpu):
            torch_device, index = torch.device("cuda", device.device_id), device.device_id
            # the step's own, for what torch launches
            self._stream = torch.cuda.ExternalStream(device.stream.ptr, torch_device)
        manifest = read_manifest(path.parent)
        _check_target(path, manifest, torch_device)
        self._inputs, self._outputs = manifest["inputs"], manifest["outputs"]
        try:
            # A pool belongs to torch's current GPU, and loading a package changes which GPU is current.
            with torch.cuda.device(index):  # does nothing for -1
                if device.is_gpu:
                    self._graph_memory = torch.cuda.MemPool()  # which torch gives to nobody else
                # Not torch._inductor.aoti_load_package, which first looks for a compiler, for 15 s.
                self._package = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, index)
        except Exception as error:  # of many kinds
            raise RepositoryError(
                f"PyTorch {torch.__version__} cannot load {path}: {error}. {_rebuild_hint()}"
            ) from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode(), self._on_stream():
            outputs = self._package.boxed_run([from_dlpack(inputs[name]) for name in self._inputs])
            return {
                name: self._device.import_array(tensor)
                for name, tensor in zip(self._outputs, outputs, strict=True)
            }

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        if not isinstance(self._device, Gpu):
            yield
            return
        memory = torch.cuda.use_mem_pool(self._graph_memory) if self._device.has_graphs else nullcontext()
        with torch.cuda.stream(self._stream), memory:
            yield


def describe_target(device: torch.device) -> str:
    """What a package runs on: ``cpu``, or ``cuda`` and the compute capability."""
    if device.type == "cpu":
        return "cpu"
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda sm_{major}{minor}"


def _check_target(path: Path, manifest: Mapping[str, Any], device: torch.device) -> None:
    built_for = manifest["engines"][path.name]["target"], manifest["versions"]["torch"].split("+")[0]
    here = describe_target(device), torch.__version__.split("+")[0]
    if built_for != here:
        raise RepositoryError(
            f"{path} was compiled for {built_for[0]} by PyTorch {built_for[1]}, and this is {here[0]} with "
            f"PyTorch {here[1]}. {_rebuild_hint()}"
        )


def _rebuild_hint() -> str:
    return "Export the detector here with rcnn-export --engine aoti"
