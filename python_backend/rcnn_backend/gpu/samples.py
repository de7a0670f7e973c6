"""The first elements of several tensors on a GPU, gathered by one kernel. See ``rcnn_backend.lost_tensors``."""

from collections.abc import Sequence

import cupy
import numpy as np

from rcnn_backend import kernels
from rcnn_backend.lost_tensors import SAMPLES

MAX_TENSORS = 32  # a launch
TYPES = {"float32": 0, "float16": 1, "int32": 2}
TENSOR = np.dtype(
    [
        ("data", np.uint64),
        ("image_stride", np.int64),
        ("stride", np.int32),
        ("count", np.int32),
        ("first", np.int32),
        ("type", np.int32),
    ]
)
TENSORS = np.dtype([("tensors", TENSOR, MAX_TENSORS)])


def take_samples(tensors: Sequence[cupy.ndarray]) -> cupy.ndarray:
    """Samples of tensors [B, ...], float32, float16 or int32 of any strides: float32 [B, sum of S].

    Raises:
        ValueError: more tensors than a launch takes, or one of another type.
    """
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors: expected at most {MAX_TENSORS}")
    batch, columns = len(tensors[0]), 0
    table = np.zeros(1, TENSORS)
    for index, tensor in enumerate(tensors):
        if tensor.dtype.name not in TYPES:
            raise ValueError(f"a tensor is {tensor.dtype}: expected one of {', '.join(TYPES)}")
        count = min(SAMPLES, tensor.shape[-1])
        strides = tensor.strides[0], tensor.strides[-1]
        table["tensors"][0, index] = (tensor.data.ptr, *strides, count, columns, TYPES[tensor.dtype.name])
        columns += count
    samples = cupy.empty((batch, columns), np.float32)
    arguments = table, np.int32(len(tensors)), np.int32(columns), samples
    kernels.load("samples", "take_samples")((batch,), (SAMPLES * MAX_TENSORS,), arguments)
    return samples


def warm_up() -> None:
    """Compiles and loads what ``take_samples`` runs."""
    take_samples([cupy.zeros((1, 1), np.float32)])
