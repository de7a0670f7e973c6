"""torch programs that, on a GPU, run their convolutions as cuDNN graphs and some other operators as our own kernels.

Needs PyTorch, and on a GPU also CuPy and nvidia-cudnn-frontend.
"""

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export.passes import move_to_device_pass
from torch.utils.dlpack import from_dlpack

# These define the operators that the program calls.
import rcnn_backend.engines.best_boxes
import rcnn_backend.engines.convolution
import rcnn_backend.engines.convolution_int8
import rcnn_backend.engines.feature_maps  # noqa: F401
from rcnn_backend.contract.manifest import read_manifest
from rcnn_backend.devices import Array, Device
from rcnn_backend.engines.torch_device import TorchDevice
from rcnn_backend.errors import RepositoryError

GPU_OPERATORS = ("best_boxes_gpu", "feature_maps_gpu", "quantize_gpu")


class CudnnEngine:
    """``model.cudnn.pt2``, with the tensors' names from the manifest in the same folder.

    FP32 is computed in FP32, not in TF32. On a CPU, torch's own operators run everything. On a GPU, the first batch of
    new shapes waits for its plans: seconds if they must be timed, less if plans are known for batches of about this size.

    Raises:
        RepositoryError: the program cannot be loaded, or nvidia-cudnn-frontend cannot be used.
    """

    def __init__(self, path: Path, device: Device) -> None:
        self._device = device
        self.is_capturable = device.is_gpu
        manifest = read_manifest(path.parent)
        self._inputs, self._outputs = manifest["inputs"], manifest["outputs"]
        if device.is_gpu:
            _check_frontend(path)
            for name in GPU_OPERATORS:
                importlib.import_module(f"rcnn_backend.engines.{name}")
        self._torch = TorchDevice(device)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about its own code
                program = torch.export.load(path)
            if device.is_gpu:
                program = move_to_device_pass(program, self._torch.target)
            self._module = program.module(check_guards=False)
        except Exception as error:  # torch raises many types
            raise RepositoryError(
                f"PyTorch {torch.__version__} cannot load {path}: {error}. It was written by PyTorch "
                f"{manifest['versions']['torch']}. Export the detector again with rcnn-export --engine cudnn"
            ) from error
        for parameter in self._module.parameters():
            if parameter.ndim == 4:  # the weight of a convolution
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with self._torch.running(), exact:
            outputs = self._module(*(from_dlpack(inputs[name]) for name in self._inputs))
            arrays = {
                name: self._device.import_array(tensor)
                for name, tensor in zip(self._outputs, outputs, strict=True)
            }
        if self._device.is_gpu:
            from rcnn_backend.engines.convolution_plans import plans_of

            plans_of(self._torch.target).choices.save()
        return arrays


def _check_frontend(path: Path) -> None:
    try:
        importlib.import_module("rcnn_backend.engines.convolution_plans")
    except ImportError as error:
        raise RepositoryError(
            f"{path} cannot run on a GPU, because nvidia-cudnn-frontend cannot be loaded here ({error}): "
            "run `pip install 'rcnn-backend[cudnn]'`"
        ) from error
