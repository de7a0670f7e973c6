"""The first elements of several tensors on a GPU, gathered by one kernel. See ``rcnn_backend.lost_tensors``."""

import struct
from collections.abc import Sequence

import cupy
import numpy as np

from rcnn_backend import kernels
from rcnn_backend.lost_tensors import SAMPLES

MAX_TENSORS = 32  # a launch
TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int32): 2}
TENSOR = struct.Struct("Qqiiii")  # data, image_stride, stride, count, first, type
TABLE = np.dtype((np.void, TENSOR.size * MAX_TENSORS))


def take_samples(tensors: Sequence[cupy.ndarray]) -> cupy.ndarray:
    """Samples of tensors [B, ...], float32, float16 or int32 of any strides: float32 [B, sum of S].

    Raises:
        ValueError: more tensors than a launch takes, or one of another type.
    """
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors: expected at most {MAX_TENSORS}")
    columns = 0
    table = np.zeros(1, TABLE)
    for index, tensor in enumerate(tensors):
        if tensor.dtype not in TYPES:
            raise ValueError(f"a tensor is {tensor.dtype}: expected float32, float16 or int32")
        count = min(SAMPLES, tensor.shape[-1])
        strides, type_ = tensor.strides, TYPES[tensor.dtype]
        fields = tensor.data.ptr, strides[0], strides[-1], count, columns, type_
        TENSOR.pack_into(table, index * TENSOR.size, *fields)
        columns += count
    samples = cupy.empty((len(tensors[0]), columns), np.float32)
    arguments = table, np.int32(len(tensors)), np.int32(columns), samples
    kernels.load("samples", "take_samples")((len(tensors[0]),), (SAMPLES * MAX_TENSORS,), arguments)
    return samples


def warm_up() -> None:
    """Compiles and loads what ``take_samples`` runs."""
    take_samples([cupy.zeros((1, 1), np.float32)])
