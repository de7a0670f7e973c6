"""Samples of several tensors on a GPU, gathered by one kernel. See ``rcnn_backend.steps.lost_tensors``."""

import math
import struct
from collections.abc import Sequence

import cupy
import numpy as np

from rcnn_backend.contract.samples import FIRST, NUM_SAMPLES
from rcnn_backend.operators.gpu import kernels

MAX_TENSORS = 32  # per launch
THREADS = 256  # for each tensor and image
TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int32): 2}
TENSOR = struct.Struct(
    "Qqqqiiiiii"
)  # data, image_size, middle, middle_size, last, rows, count, width, first, type
TABLE = np.dtype((np.void, TENSOR.size * MAX_TENSORS))


def gather(tensors: Sequence[cupy.ndarray], sampled: Sequence[bool]) -> cupy.ndarray:
    """The samples of each tensor, or all of its elements [B, n] where ``sampled`` is false.

    Args:
        tensors: [B, ...] float32, float16 or int32.

    Returns:
        float32 [B, columns], the tensors side by side.

    Raises:
        ValueError: there are more tensors than a launch allows, or one has another type.
    """
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors: expected at most {MAX_TENSORS}")
    tensors = [cupy.ascontiguousarray(tensor) for tensor in tensors]
    columns = 0
    table = bytearray(TABLE.itemsize)
    for index, (tensor, is_sampled) in enumerate(zip(tensors, sampled, strict=True)):
        if tensor.dtype not in TYPES:
            raise ValueError(f"a tensor is {tensor.dtype}: expected float32, float16 or int32")
        size, last = math.prod(tensor.shape[1:]), tensor.shape[-1]
        rows = tensor.shape[-2] if tensor.ndim > 2 else 1
        width = FIRST if is_sampled else last
        middle_size = size // rows if is_sampled else 0
        fields = size, rows // 2 * last, middle_size, last, rows, min(width, last), width, columns
        TENSOR.pack_into(table, index * TENSOR.size, tensor.data.ptr, *fields, TYPES[tensor.dtype])
        columns += NUM_SAMPLES if is_sampled else last
    samples = cupy.empty((len(tensors[0]), columns), np.float32)
    arguments = np.frombuffer(table, TABLE), np.int32(columns), samples
    kernels.load("samples", "take_samples")((len(tensors), len(tensors[0])), (THREADS,), arguments)
    return samples
