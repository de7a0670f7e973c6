"""Samples of several tensors on a GPU, gathered by two kernels. See ``rcnn_backend.lost_tensors``."""

import math
import struct
from collections.abc import Sequence

import cupy
import numpy as np

from rcnn_backend import kernels
from rcnn_backend.lost_tensors import FIRST, num_samples

MAX_TENSORS = 32  # a launch
FIRST_THREADS, LARGEST_THREADS = 64, 256
MAX_BLOCKS = 128  # of a tensor and an image
VECTOR_BYTES = 16
TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int32): 2}
TENSOR = struct.Struct("Qqqqiiii")  # data, image_stride, size, vectors, stride, count, first, type
TABLE = np.dtype((np.void, TENSOR.size * MAX_TENSORS))


def gather(tensors: Sequence[cupy.ndarray], sampled: Sequence[bool]) -> cupy.ndarray:
    """The samples of each tensor, or, not ``sampled``, all of it [B, n].

    Args:
        tensors: [B, ...] of any strides, float32, float16 or int32.

    Returns:
        float32 [B, columns], side by side.

    Raises:
        ValueError: more tensors than a launch takes, or one of another type.
    """
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors: expected at most {MAX_TENSORS}")
    tensors = [cupy.ascontiguousarray(tensor) for tensor in tensors]
    batch, columns, largest = len(tensors[0]), 0, 0
    table = bytearray(TABLE.itemsize)
    for index, (tensor, is_sampled) in enumerate(zip(tensors, sampled, strict=True)):
        if tensor.dtype not in TYPES:
            raise ValueError(f"a tensor is {tensor.dtype}: expected float32, float16 or int32")
        last, size = tensor.shape[-1], math.prod(tensor.shape[1:]) if is_sampled else 0
        image_bytes = size * tensor.itemsize
        aligned = image_bytes % VECTOR_BYTES == tensor.data.ptr % VECTOR_BYTES == 0
        vectors = image_bytes // VECTOR_BYTES if aligned else 0
        count = min(FIRST, last) if is_sampled else last
        fields = tensor.strides[0], size, vectors, tensor.itemsize, count, columns, TYPES[tensor.dtype]
        TENSOR.pack_into(table, index * TENSOR.size, tensor.data.ptr, *fields)
        columns += num_samples(last) if is_sampled else last
        largest = max(largest, vectors or size)
    samples = cupy.empty((batch, columns), np.float32)
    arguments = np.frombuffer(table, TABLE), np.int32(columns), samples
    kernels.load("samples", "first_elements")((len(tensors), batch), (FIRST_THREADS,), arguments)
    blocks = min(MAX_BLOCKS, math.ceil(largest / LARGEST_THREADS))
    if blocks:
        grid = blocks, len(tensors), batch
        kernels.load("samples", "largest_magnitudes")(grid, (LARGEST_THREADS,), arguments)
    return samples
