"""A convolution with bias, residual and ReLU as one torch operator: ``torch.ops.rcnn.convolution``.

    relu(conv2d(x, weight) + bias + residual)

Shapes: x [B, C, H, W], weight [K, C / groups, R, S], bias [K], residual [B, K, h, w] -> [B, K, h, w].
All have the same type, FP32 or FP16; sums are in FP32. Bias, residual and ReLU may each be missing. The result
is in channels-last order, whatever the memory order of the arguments.

rcnn-export writes calls of this operator into the programs of ``--engine cudnn``. On a CPU, torch's own operators
compute it; on a GPU, ``convolution_plans`` does.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CHANNELS_LAST = torch.channels_last
SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, "
    "int groups, bool relu) -> Tensor"
)


class Convolution(NamedTuple):
    """What a convolution computes and on which shapes; convolutions with equal descriptions can share a plan."""

    x: tuple[int, ...]  # B, C, H, W
    weight: tuple[int, ...]  # K, C / groups, R, S
    dtype: torch.dtype
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    has_bias: bool
    has_residual: bool
    relu: bool
    residual_dtype: torch.dtype | None = None  # only if it differs from ``dtype``
    result_dtype: torch.dtype | None = None  # likewise

    @classmethod
    def of(
        cls,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        relu: bool,
    ) -> "Convolution":
        """The description of a call of the operator."""
        return cls(
            tuple(x.shape),
            tuple(weight.shape),
            x.dtype,
            tuple(stride),
            tuple(padding),
            tuple(dilation),
            groups,
            bias is not None,
            residual is not None,
            relu,
        )

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        """Stride, padding, dilation, groups."""
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def output(self) -> tuple[int, ...]:
        """The shape [B, K, h, w] of the result; sizes may be symbols."""
        sides = (
            (side + 2 * pad - step * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, pad, step in zip(
                self.x[2:], self.weight[2:], self.stride, self.padding, self.dilation, strict=True
            )
        )
        return (self.x[0], self.weight[0], *sides)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
) -> Tensor:
    """The operator computed with torch's own operators, one after the other, on any device."""
    x = x.contiguous(memory_format=CHANNELS_LAST)
    found = functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if residual is not None:
        found += residual
    if relu:
        found.relu_()
    return found.contiguous(memory_format=CHANNELS_LAST)


def _describe(x: Tensor, *others: Any) -> Tensor:
    """An empty result of a call of the operator, for tracing."""
    shape = Convolution.of(x, *others).output
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST)


torch.library.define("rcnn::convolution", SCHEMA)
torch.library.impl("rcnn::convolution", "CPU", convolve)
torch.library.register_fake("rcnn::convolution", _describe)
