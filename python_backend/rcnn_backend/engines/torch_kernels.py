"""Launches CUDA kernels on torch's tensors, on torch's current stream."""

from typing import Any

import cupy
import torch
from torch import Tensor

from rcnn_backend.operators.gpu import kernels

CPP_TYPES = {torch.float32: "float", torch.float16: "Half"}  # type names in the kernels


def launch(
    source: str,
    expression: str,
    grid: tuple[int, ...],
    threads: int,
    arguments: tuple[Any, ...],
    on: Tensor,
    shared_bytes: int = 0,
) -> None:
    """Launches the kernel of ``operators/gpu/cuda/<source>.cu`` that the C++ ``expression`` names.

    Args:
        arguments: the kernel's arguments: addresses as int, other numbers as NumPy scalars.
        on: a tensor on the GPU that is to run the kernel.
        shared_bytes: the dynamic shared memory of a block.
    """
    stream = torch.cuda.current_stream(on.device).cuda_stream
    with cupy.cuda.Device(on.device.index), cupy.cuda.ExternalStream(stream):
        kernel = kernels.load(source, expression, shared_bytes)
        kernel(grid, (threads,), arguments, shared_mem=shared_bytes)
