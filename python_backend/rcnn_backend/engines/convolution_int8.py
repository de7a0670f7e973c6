"""An INT8 convolution with bias, residual and ReLU as one torch operator: ``torch.ops.rcnn.convolution_int8``.

    relu(conv2d(x, weight) * scale + bias + residual * residual_scale)

Shapes: x int8 [B, C, H, W], weight int8 [K, C / groups, R, S], scale, bias and residual_scale FP32 [K], residual
[B, K, h, w] int8, FP16 or FP32 -> [B, K, h, w] of ``dtype``: int8, FP16 or FP32. Bias, ReLU, and the residual with its
scale may each be missing. The products are summed exactly; everything else is in FP32. An int8 result is rounded to the
nearest integer, with halves to the even one, and clamped to -128 to 127. The result is in channels-last order.

``torch.ops.rcnn.quantize`` makes its int8 input: x [B, C, H, W] FP16 or FP32 -> x / scale as int8, rounded and clamped
the same way, in channels-last order. rcnn-export writes calls of both into the INT8 programs of ``--engine cudnn``.
On a CPU, torch's own operators compute them; on a GPU, ``convolution_plans`` and ``quantize_gpu`` do.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rcnn_backend.engines.convolution import CHANNELS_LAST, Convolution

SMALLEST, LARGEST = -128, 127
EXACT_IN_FP32 = 1 << 24  # FP32 represents all integers up to this one exactly
SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor scale, Tensor? residual_scale, int[2] stride, "
    "int[2] padding, int[2] dilation, int groups, bool relu, ScalarType dtype) -> Tensor"
)


def describe_int8(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
    dtype: torch.dtype,
) -> Convolution:
    """The description of a call of the operator."""
    described = Convolution.of(x, weight, bias, residual, stride, padding, dilation, groups, relu)
    return described._replace(
        residual_dtype=None if residual is None or residual.dtype == x.dtype else residual.dtype,
        result_dtype=None if dtype == x.dtype else dtype,
    )


def convolve_int8(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor,
    residual_scale: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The operator computed with torch's own operators, on any device."""
    largest_sum = weight[0].numel() * SMALLEST**2
    exact = torch.float32 if largest_sum <= EXACT_IN_FP32 else torch.float64
    x = x.contiguous(memory_format=CHANNELS_LAST)
    sums = functional.conv2d(x.to(exact), weight.to(exact), None, stride, padding, dilation, groups)
    found = sums.float() * scale[:, None, None]
    if bias is not None:
        found += bias[:, None, None]
    if residual is not None:
        assert residual_scale is not None
        found += residual.float() * residual_scale[:, None, None]
    if relu:
        found.relu_()
    found = _to_int8(found) if dtype == torch.int8 else found.to(dtype)
    return found.contiguous(memory_format=CHANNELS_LAST)


def quantize(x: Tensor, scale: float) -> Tensor:
    """The operator computed with torch's own operators, on a CPU."""
    return _to_int8(x.float() / scale).contiguous(memory_format=CHANNELS_LAST)


def _to_int8(x: Tensor) -> Tensor:
    return x.round().clamp(SMALLEST, LARGEST).to(torch.int8)


def _describe(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor,
    residual_scale: Tensor | None,
    *others: Any,
) -> Tensor:
    """An empty result of a call of the operator, for tracing."""
    shape = describe_int8(x, weight, bias, residual, *others).output
    return torch.empty(shape, dtype=others[-1], device=x.device, memory_format=CHANNELS_LAST)


def _describe_quantized(x: Tensor, scale: float) -> Tensor:
    return torch.empty(x.shape, dtype=torch.int8, device=x.device, memory_format=CHANNELS_LAST)


torch.library.define("rcnn::convolution_int8", SCHEMA)
torch.library.impl("rcnn::convolution_int8", "CPU", convolve_int8)
torch.library.register_fake("rcnn::convolution_int8", _describe)
torch.library.define("rcnn::quantize", "(Tensor x, float scale) -> Tensor")
torch.library.impl("rcnn::quantize", "CPU", quantize)
torch.library.register_fake("rcnn::quantize", _describe_quantized)
