"""``torch.ops.rcnn.best_boxes`` on a GPU, computed by the kernels in ``best_boxes.cu``.

Among equal logits, the one with the lower anchor number comes first. torch's ``topk`` on a GPU does the same, unless
32 or fewer are kept: then it returns equal logits in any order. Importing this module registers the operator for GPUs.
"""

import math
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rcnn_backend.engines.best_boxes import best_boxes
from rcnn_backend.engines.torch_kernels import CPP_TYPES, launch

MAX_LEVELS = 8
MAX_KEPT = 4096  # anchors of one level
MAX_BATCH = (1 << 16) - 1  # limit of a grid's y dimension
MAX_ELEMENTS = (1 << 31) - 1  # anchors of one image
TILE, BINS = 2048, 2048
THREADS, DECODE_THREADS = 256, 1024
LEVEL = struct.Struct("QQQiiiiiiiiii")  # the fields of the kernels' HeadLevel
LEVELS = struct.Struct("iiii")  # the last fields of HeadLevels: count, rows, words, unused
TABLE = np.dtype((np.void, LEVEL.size * MAX_LEVELS + LEVELS.size))
DECODING = np.dtype((np.void, 5 * 4))


def _best_boxes_on_gpu(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    cell_anchors: Sequence[Tensor],
    height: int,
    width: int,
    top_n: int,
    weights: Sequence[float],
    clip: float,
) -> Tensor:
    if not _takes(objectness, deltas, top_n):
        return best_boxes(objectness, deltas, cell_anchors, height, width, top_n, weights, clip)
    first = objectness[0]
    batch, count = first.shape[0], len(objectness)
    logits = [_channels_last(each) for each in objectness]
    deltas = [_channels_last(each) for each in deltas]
    anchors = [each.float().contiguous() for each in cell_anchors]

    table, tiles, rows, words = bytearray(TABLE.itemsize), 0, 0, 0
    for index, tensors in enumerate(zip(logits, deltas, anchors, strict=True)):
        cell_size, grid_height, grid_width = tensors[0].shape[1:]
        size = cell_size * grid_height * grid_width
        kept = min(top_n, size)
        strides = height // grid_height, width // grid_width
        fields = size, cell_size, grid_width, *strides, kept, tiles, rows, words, 0
        LEVEL.pack_into(table, index * LEVEL.size, *(tensor.data_ptr() for tensor in tensors), *fields)
        tiles, rows, words = tiles + math.ceil(size / TILE), rows + kept, words + size
    LEVELS.pack_into(table, LEVEL.size * MAX_LEVELS, count, rows, words, 0)

    def new(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=first.device)

    result, listed = new(batch, rows, 6, dtype=torch.float32), new(batch, words, dtype=torch.int64)
    bins = new(batch * count * (BINS + 1), dtype=torch.int32).zero_()
    ends = bins[batch * count * BINS :]
    levels = np.frombuffer(table, TABLE)
    factors = [np.float32(1) / np.float32(weight) for weight in weights]
    decoding = np.array([*factors, clip], np.float32).view(DECODING)
    kind, data = CPP_TYPES[first.dtype], (bins.data_ptr(), ends.data_ptr(), listed.data_ptr())
    # 1. Count the logits that share their first bits. 2. List those that may be kept. 3. Sort and decode them.
    launch("best_boxes", f"count_logits<{kind}>", (tiles, batch), THREADS, (levels, data[0]), first)
    launch("best_boxes", f"gather_logits<{kind}>", (tiles, batch), THREADS, (levels, *data), first)
    arguments = levels, decoding, data[0], data[2], result.data_ptr()
    launch("best_boxes", f"decode_best<{kind}>", (count, batch), DECODE_THREADS, arguments, first)
    return result


def _takes(objectness: Sequence[Tensor], deltas: Sequence[Tensor], top_n: int) -> bool:
    """Whether the kernels support these tensors."""
    anchors = sum(math.prod(logits.shape[1:]) for logits in objectness)
    return (
        len(objectness) <= MAX_LEVELS
        and 1 <= top_n <= MAX_KEPT
        and len(objectness[0]) <= MAX_BATCH
        and anchors <= MAX_ELEMENTS
        and objectness[0].dtype in CPP_TYPES
        and all(each.numel() and each.dtype == objectness[0].dtype for each in (*objectness, *deltas))
    )


def _channels_last(tensor: Tensor) -> Tensor:
    """The tensor in channels-last order, aligned so that the kernels can read several numbers at once."""
    tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


torch.library.impl("rcnn::best_boxes", "CUDA", _best_boxes_on_gpu)
