"""Max pooling and nearest upsampling in channels-last order: ``torch.ops.rcnn.max_pool`` and ``torch.ops.rcnn.upsample``.

Shapes: x [B, C, H, W], FP32 or FP16, and optionally an addend [B, C, h, w] -> [B, C, h, w] of the same type. The
results are in channels-last order, whatever the memory order of the arguments, and bit-identical to torch's.

rcnn-export writes calls of these operators into the programs of ``--engine cudnn``. On a CPU, torch's own operators
compute them; on a GPU, ``feature_maps_gpu`` does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

CHANNELS_LAST = torch.channels_last


def max_pool(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """``max_pool2d`` without dilation, on any device."""
    found = functional.max_pool2d(x, list(kernel), list(stride), list(padding))
    return found.contiguous(memory_format=CHANNELS_LAST)


def upsample(x: Tensor, height: int, width: int, addend: Tensor | None = None) -> Tensor:
    """``interpolate(x, size=(height, width), mode="nearest")`` plus ``addend``, on any device."""
    found = functional.interpolate(x, size=(height, width), mode="nearest")
    if addend is not None:
        found = found + addend
    return found.contiguous(memory_format=CHANNELS_LAST)


def pooled_size_hw(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, ...]:
    """Height and width of the result of ``max_pool``; sizes may be symbols."""
    sides = zip(x.shape[2:], kernel, stride, padding, strict=True)
    return tuple((side + 2 * pad - window) // step + 1 for side, window, step, pad in sides)


def _describe_pooled(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """An empty result, for tracing."""
    height, width = pooled_size_hw(x, kernel, stride, padding)
    return _describe_upsampled(x, height, width)


def _describe_upsampled(x: Tensor, height: int, width: int, addend: Tensor | None = None) -> Tensor:
    """An empty result, for tracing."""
    shape = (*x.shape[:2], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST)


torch.library.define("rcnn::max_pool", "(Tensor x, int[2] kernel, int[2] stride, int[2] padding) -> Tensor")
torch.library.impl("rcnn::max_pool", "CPU", max_pool)
torch.library.register_fake("rcnn::max_pool", _describe_pooled)
torch.library.define(
    "rcnn::upsample", "(Tensor x, SymInt height, SymInt width, Tensor? addend=None) -> Tensor"
)
torch.library.impl("rcnn::upsample", "CPU", upsample)
torch.library.register_fake("rcnn::upsample", _describe_upsampled)
