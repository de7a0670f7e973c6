"""AOTInductor packages: NumPy arrays in and out on the CPU, CuPy arrays on a GPU. Needs PyTorch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from rcnn_backend.contract.manifest import read_manifest
from rcnn_backend.devices import Array, Device
from rcnn_backend.engines.torch_device import TorchDevice
from rcnn_backend.errors import RepositoryError


class TorchEngine:
    """``model.pt2``, with the tensors' names from the manifest in the same folder.

    Raises:
        RepositoryError: the package was compiled for another device or by another PyTorch, or cannot
            be loaded.
    """

    def __init__(self, path: Path, device: Device) -> None:
        self._device = device
        self.is_capturable = device.is_gpu
        self._torch = TorchDevice(device)
        manifest = read_manifest(path.parent)
        _check_target(path, manifest, self._torch.target)
        self._inputs, self._outputs = manifest["inputs"], manifest["outputs"]
        try:
            with self._torch.current():  # loading a package changes which GPU is current
                # torch._inductor.aoti_load_package would first spend 15 s looking for a compiler.
                self._package = torch._C._aoti.AOTIModelPackageLoader(
                    str(path), "model", True, 1, self._torch.index
                )
        except Exception as error:  # torch raises many types
            raise RepositoryError(
                f"PyTorch {torch.__version__} cannot load {path}: {error}. {_rebuild_hint()}"
            ) from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with self._torch.running():
            outputs = self._package.boxed_run([from_dlpack(inputs[name]) for name in self._inputs])
            return {
                name: self._device.import_array(tensor)
                for name, tensor in zip(self._outputs, outputs, strict=True)
            }


def describe_target(device: torch.device) -> str:
    """The target of a package: ``cpu``, or ``cuda`` and the compute capability."""
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
