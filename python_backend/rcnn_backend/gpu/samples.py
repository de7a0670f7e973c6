"""The first elements of several tensors on a GPU, gathered by one kernel. See ``rcnn_backend.lost_tensors``."""

import struct
from collections.abc import Sequence

import cupy
import numpy as np

from rcnn_backend import kernels

MAX_TENSORS = 32  # a launch
THREADS = 64  # of a tensor and an image
TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int32): 2}
TENSOR = struct.Struct("Qqiiii")  # data, image_stride, stride, count, first, type
TABLE = np.dtype((np.void, TENSOR.size * MAX_TENSORS))


def first_elements(tensors: Sequence[cupy.ndarray], counts: Sequence[int]) -> cupy.ndarray:
    """The first ``counts`` elements along the last axis, at 0 of all others but the first.

    Args:
        tensors: [B, ...] of any strides, float32, float16 or int32.

    Returns:
        float32 [B, sum of counts], side by side.

    Raises:
        ValueError: more tensors than a launch takes, or one of another type.
    """
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors: expected at most {MAX_TENSORS}")
    batch, columns = len(tensors[0]), 0
    table = bytearray(TABLE.itemsize)
    for index, (tensor, count) in enumerate(zip(tensors, counts, strict=True)):
        if tensor.dtype not in TYPES:
            raise ValueError(f"a tensor is {tensor.dtype}: expected float32, float16 or int32")
        strides, type_ = tensor.strides, TYPES[tensor.dtype]
        fields = tensor.data.ptr, strides[0], strides[-1], count, columns, type_
        TENSOR.pack_into(table, index * TENSOR.size, *fields)
        columns += count
    elements = cupy.empty((batch, columns), np.float32)
    arguments = np.frombuffer(table, TABLE), np.int32(columns), elements
    kernels.load("samples", "first_elements")((len(tensors), batch), (THREADS,), arguments)
    return elements
