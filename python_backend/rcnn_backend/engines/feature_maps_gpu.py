"""``torch.ops.rcnn.max_pool`` and ``torch.ops.rcnn.upsample`` on a GPU, computed by the kernels in ``feature_maps.cu``.

Importing this module registers the operators for GPUs.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rcnn_backend.engines.feature_maps import CHANNELS_LAST, max_pool, pooled_size_hw, upsample
from rcnn_backend.engines.torch_kernels import CPP_TYPES, launch

THREADS = 256
LOAD_BYTES = 16
MAX_WINDOW = 16  # pixels, which a thread holds in registers
MAX_PARTS = (1 << 16) - 1  # parts of a row: the limit of a grid's y dimension
MAX_ELEMENTS = (1 << 31) - 1  # elements of an image; also the limit of a grid's x dimension


def _max_pool_on_gpu(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    size_hw = pooled_size_hw(x, kernel, stride, padding)
    is_usual = all(2 * pad <= side for pad, side in zip(padding, kernel, strict=True))
    if not (is_usual and math.prod(kernel) <= MAX_WINDOW and _takes(x, size_hw)):
        return max_pool(x, kernel, stride, padding)
    return _launch("max_pool", x, size_hw, [*stride, *padding], kernel)


def _upsample_on_gpu(x: Tensor, height: int, width: int, addend: Tensor | None = None) -> Tensor:
    is_addable = addend is None or (addend.dtype == x.dtype and addend.shape == (*x.shape[:2], height, width))
    if not (is_addable and _takes(x, (height, width))):
        return upsample(x, height, width, addend)
    scales = [np.float32(x.shape[2]) / np.float32(height), np.float32(x.shape[3]) / np.float32(width)]
    if addend is not None:
        addend = addend.contiguous(memory_format=CHANNELS_LAST)
    address = addend.data_ptr() if addend is not None else 0
    return _launch("upsample", x, (height, width), [*scales, np.uint64(address)], addresses=[address])


def _takes(x: Tensor, size_hw: Sequence[int]) -> bool:
    """Whether the kernels support this tensor and a result of this size."""
    if x.dtype not in CPP_TYPES or x.ndim != 4 or not x.numel() or min(size_hw) < 1:
        return False
    batch, channels, height, width = x.shape
    parts = math.ceil(size_hw[1] * channels / THREADS)  # at most: a thread may compute several channels
    return parts <= MAX_PARTS and max(height * width * channels, batch * size_hw[0]) <= MAX_ELEMENTS


def _launch(
    name: str,
    x: Tensor,
    size_hw: Sequence[int],
    more: Sequence[int | np.float32 | np.uint64],
    constants: Sequence[int] = (),
    addresses: Sequence[int] = (),
) -> Tensor:
    """Runs a kernel. Its template parameters are the type, the channels of a thread and ``constants``.

    Args:
        addresses: of other tensors that it reads, with 0 for a missing one.
    """
    x = x.contiguous(memory_format=CHANNELS_LAST)
    batch, channels, *input_hw = x.shape
    result = torch.empty(
        (batch, channels, *size_hw), dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST
    )
    vector = LOAD_BYTES // x.itemsize
    if channels % vector or any(address % LOAD_BYTES for address in (x.data_ptr(), *addresses)):
        vector = 1
    vectors = channels // vector
    template = ", ".join(map(str, (CPP_TYPES[x.dtype], vector, *constants)))
    grid = batch * size_hw[0], math.ceil(size_hw[1] * vectors / THREADS)
    numbers = [np.int32(each) if isinstance(each, int) else each for each in more]
    sizes = map(np.int32, (*input_hw, *size_hw, vectors))
    launch(
        "feature_maps",
        f"{name}<{template}>",
        grid,
        THREADS,
        (x.data_ptr(), result.data_ptr(), *sizes, *numbers),
        x,
    )
    return result


torch.library.impl("rcnn::max_pool", "CUDA", _max_pool_on_gpu)
torch.library.impl("rcnn::upsample", "CUDA", _upsample_on_gpu)
