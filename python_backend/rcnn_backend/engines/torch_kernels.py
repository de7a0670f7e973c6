"""Launches CUDA kernels on torch's tensors, on torch's current stream."""

from typing import Any

import cupy
import torch
from torch import Tensor

from rcnn_backend.operators.gpu import kernels

CPP_TYPES = {torch.float32: "float", torch.float16: "Half"}  # type names in the kernels


def launch(
    source: str, expression: str, grid: tuple[int, ...], threads: int, arguments: tuple[Any, ...], on: Tensor
) -> None:
    """Launches the kernel of ``operators/gpu/cuda/<source>.cu`` that the C++ ``expression`` names.

    Args:
        arguments: the kernel's arguments: addresses as int, other numbers as NumPy scalars.
        on: a tensor on the GPU that is to run the kernel.
    """
    stream = torch.cuda.current_stream(on.device).cuda_stream
    with cupy.cuda.Device(on.device.index), cupy.cuda.ExternalStream(stream):
        kernels.load(source, expression)(grid, (threads,), arguments)
