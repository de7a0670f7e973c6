"""Swin's windowed attention for pictures of every size: torchvision's ``shifted_window_attention`` as one graph.

torchvision's function does not shift the windows along a side that one window covers, and decides this in Python. A
tracer would keep the decision for the example picture, which is wrong for smaller ones. Here the shift is computed in
the graph.

Shapes: B images, H x W the feature map, Hp x Wp the same padded to whole windows, C channels, M heads, n windows per
image, s positions per window.
"""

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models import swin_transformer

MASKED = -100.0  # added to the logits of positions that are neighbours only because of the cyclic shift


@contextlib.contextmanager
def traceable_swin() -> Iterator[None]:
    """Makes torchvision's Swin modules, V1 and V2, call the functions below."""
    with (
        mock.patch.object(swin_transformer, "shifted_window_attention", shifted_window_attention),
        mock.patch.object(swin_transformer, "_patch_merging_pad", merge_patches),
    ):
        yield


def merge_patches(x: Tensor) -> Tensor:
    """torchvision's ``_patch_merging_pad``: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 4 * C]."""
    height, width = x.shape[-3:-1]
    rows, columns = ((side + 1) // 2 for side in (height, width))
    x = functional.pad(x, (0, 0, 0, 2 * columns - width, 0, 2 * rows - height))
    quarters = x.unflatten(-2, (columns, 2)).unflatten(-4, (rows, 2))  # [B, H/2, 2, W/2, 2, C]
    merged: Tensor = quarters.permute(0, 1, 3, 4, 2, 5).flatten(-3)
    return merged


def shifted_window_attention(
    input: Tensor,
    qkv_weight: Tensor,
    proj_weight: Tensor,
    relative_position_bias: Tensor,
    window_size: list[int],
    num_heads: int,
    shift_size: list[int],
    attention_dropout: float = 0.0,
    dropout: float = 0.0,
    qkv_bias: Tensor | None = None,
    proj_bias: Tensor | None = None,
    logit_scale: Tensor | None = None,
    training: bool = False,
) -> Tensor:
    """torchvision's function of that name in eval mode: [B, H, W, C] -> [B, H, W, C]."""
    batch, height, width, channels = input.shape
    rows, columns = (
        (side + window - 1) // window for side, window in zip((height, width), window_size, strict=True)
    )
    padded_height, padded_width = rows * window_size[0], columns * window_size[1]
    x = functional.pad(input, (0, 0, 0, padded_width - width, 0, padded_height - height))

    # 1. Cyclic shift; zero along a side that one window covers.
    is_shifted = sum(shift_size) > 0
    shift_y = shift_size[0] * torch.sym_min(rows - 1, 1)
    shift_x = shift_size[1] * torch.sym_min(columns - 1, 1)
    if is_shifted:
        x = _roll(_roll(x, shift_y, 1), shift_x, 2)

    # 2. Windows.
    windowed = (batch, rows, window_size[0], columns, window_size[1], channels)
    positions, head_channels = window_size[0] * window_size[1], channels // num_heads
    x = x.reshape(windowed).permute(0, 1, 3, 2, 4, 5).reshape(-1, positions, channels)  # [B*n, s, C]

    # 3. Attention within each.
    if logit_scale is not None and qkv_bias is not None:
        query_bias, _, value_bias = qkv_bias.chunk(3)
        qkv_bias = torch.cat([query_bias, torch.zeros_like(query_bias), value_bias])
    qkv = functional.linear(x, qkv_weight, qkv_bias).reshape(-1, positions, 3, num_heads, head_channels)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()  # [B*n, M, s, C/M] each
    if logit_scale is not None:
        logits = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).transpose(-2, -1)
        logits = logits * torch.clamp(logit_scale, max=math.log(100.0)).exp()
    else:
        logits = (query * head_channels**-0.5) @ key.transpose(-2, -1)
    logits = logits + relative_position_bias  # [B*n, M, s, s]
    if is_shifted:
        region_y = _regions(padded_height, window_size[0], shift_y, x)
        region_x = _regions(padded_width, window_size[1], shift_x, x)
        regions = 3 * region_y[:, None] + region_x  # [Hp, Wp]
        regions = regions.reshape(rows, window_size[0], columns, window_size[1])
        regions = regions.permute(0, 2, 1, 3).reshape(-1, positions)  # [n, s]
        mask = (regions[:, :, None] != regions[:, None, :]).to(logits.dtype) * MASKED  # [n, s, s]
        by_image = logits.reshape(batch, rows * columns, num_heads, positions, positions)
        logits = (by_image + mask[None, :, None]).reshape(-1, num_heads, positions, positions)
    x = (functional.softmax(logits, dim=-1) @ value).transpose(1, 2).reshape(-1, positions, channels)
    x = functional.linear(x, proj_weight, proj_bias)

    # 4. Back to the feature map.
    x = x.reshape(batch, rows, columns, *window_size, channels).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, padded_height, padded_width, channels)
    if is_shifted:
        x = _roll(_roll(x, padded_height - shift_y, 1), padded_width - shift_x, 2)
    return x[:, :height, :width].contiguous()


def _roll(x: Tensor, shift: int, dim: int) -> Tensor:
    """``torch.roll(x, -shift, dim)``."""
    size = x.shape[dim]
    return torch.cat([x.narrow(dim, shift, size - shift), x.narrow(dim, 0, shift)], dim)


def _regions(size: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Which of three parts each position along one side belongs to. Attention does not cross between parts."""
    position = torch.arange(size, device=like.device)
    return (position >= size - window).to(torch.int64) + (position >= size - shift).to(torch.int64)
