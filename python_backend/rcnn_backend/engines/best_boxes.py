"""The best anchors of each level and their boxes, as one torch operator: ``torch.ops.rcnn.best_boxes``.

Shapes: B images; each level has h x w cells with A anchors each, of which k anchors are kept; N is the sum of k over
the levels. Boxes are (x1, y1, x2, y2) in pixels of the resized image.

rcnn-export writes calls of this operator into the programs of ``--engine cudnn``. On a CPU, torch's own operators
compute it; on a GPU, ``best_boxes_gpu`` does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SCHEMA = (
    "(Tensor[] objectness, Tensor[] deltas, Tensor[] cell_anchors, SymInt height, SymInt width, int top_n, "
    "float[] weights, float clip) -> Tensor"
)
Decode = Callable[[Tensor, Tensor], Tensor]  # deltas [n, 4] and anchors [n, 4] -> boxes [n, 4]


def choose_boxes(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    cell_anchors: Sequence[Tensor],
    height: int,
    width: int,
    top_n: int,
    decode: Decode,
) -> Tensor:
    """The best anchors of each level, sorted by objectness, highest first, and their boxes before clipping.

    Follows torchvision's RegionProposalNetwork up to filter_proposals' top-k.

    Args:
        objectness: for each level, logits [B, A, h, w].
        deltas: for each level, [B, 4A, h, w]: four numbers for each anchor.
        cell_anchors: for each level, [A, 4] around the origin.
        height: height of the padded picture in pixels; the cells of a level are ``height // h`` apart.
        width: its width, likewise.
        top_n: how many anchors of a level are kept; all of them if the level has fewer.
        decode: torchvision's ``BoxCoder.decode_single`` or an equivalent function.

    Returns:
        FP32 [B, N, 6]: objectness (probability), x1, y1, x2, y2, level.
    """
    levels = zip(objectness, deltas, cell_anchors, strict=True)
    return torch.cat(
        [
            _choose_of_level(level, *tensors, height, width, top_n, decode)
            for level, tensors in enumerate(levels)
        ],
        dim=1,
    )


def _choose_of_level(
    level: int,
    objectness: Tensor,
    deltas: Tensor,
    cell_anchors: Tensor,
    picture_height: int,
    picture_width: int,
    top_n: int,
    decode: Decode,
) -> Tensor:
    batch = objectness.shape[0]
    height, width = objectness.shape[-2:]
    num_anchors = cell_anchors.shape[0]
    logits = objectness.permute(0, 2, 3, 1).reshape(batch, -1).float()  # [B, h*w*A]
    deltas = deltas.reshape(batch, num_anchors, 4, height, width)
    deltas = deltas.permute(0, 3, 4, 1, 2).reshape(batch, -1, 4).float()  # [B, h*w*A, 4]

    top_logits, top = logits.topk(torch.sym_min(top_n, height * width * num_anchors), dim=1)
    strides = picture_height // height, picture_width // width
    anchors = _grid_anchors(cell_anchors, height, width, *strides)  # [h*w*A, 4]
    top_deltas = deltas.gather(1, top[:, :, None].expand(-1, -1, 4))  # [B, k, 4]
    boxes = decode(top_deltas.flatten(0, 1), anchors.index_select(0, top.flatten()))
    boxes = boxes.reshape(batch, -1, 4)  # [B, k, 4]
    scores = torch.sigmoid(top_logits)[:, :, None]
    return torch.cat([scores, boxes, torch.full_like(scores, level)], dim=2)  # [B, k, 6]


def _grid_anchors(cell_anchors: Tensor, height: int, width: int, stride_y: int, stride_x: int) -> Tensor:
    """AnchorGenerator.grid_anchors of one level: [h*w*A, 4], row by row, A anchors for each cell."""
    shift_y = torch.arange(height, dtype=torch.float32, device=cell_anchors.device) * stride_y
    shift_x = torch.arange(width, dtype=torch.float32, device=cell_anchors.device) * stride_x
    shift_y = shift_y[:, None].expand(height, width)
    shift_x = shift_x[None, :].expand(height, width)
    shifts = torch.stack([shift_x, shift_y, shift_x, shift_y], dim=2)  # [h, w, 4]
    return (shifts[:, :, None] + cell_anchors.float()).reshape(-1, 4)


def decode_deltas(weights: Sequence[float], clip: float, deltas: Tensor, anchors: Tensor) -> Tensor:
    """torchvision's BoxCoder.decode_single for one class.

    Args:
        weights: the four numbers by which the deltas are divided.
        clip: upper limit of the logarithm of a box's size divided by its anchor's size.
        deltas: FP32 [n, 4].
        anchors: FP32 [n, 4].

    Returns:
        Boxes FP32 [n, 4].
    """
    sides = []
    for low, high, offset, log_size in ((0, 2, 0, 2), (1, 3, 1, 3)):  # x and y
        size = anchors[:, high] - anchors[:, low]
        centre = anchors[:, low] + 0.5 * size
        centre = deltas[:, offset] / weights[offset] * size + centre
        half = 0.5 * (torch.exp((deltas[:, log_size] / weights[log_size]).clamp(max=clip)) * size)
        sides.append((centre - half, centre + half))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1)


def best_boxes(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    cell_anchors: Sequence[Tensor],
    height: int,
    width: int,
    top_n: int,
    weights: Sequence[float],
    clip: float,
) -> Tensor:
    """The operator computed with torch's own operators, on any device: ``choose_boxes`` with ``decode_deltas``."""

    def decode(chosen: Tensor, anchors: Tensor) -> Tensor:
        return decode_deltas(weights, clip, chosen, anchors)

    return choose_boxes(objectness, deltas, cell_anchors, height, width, top_n, decode)


def _describe(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    cell_anchors: Sequence[Tensor],
    height: int,
    width: int,
    top_n: int,
    *_others: Any,
) -> Tensor:
    """An empty result, for tracing."""
    rows = sum(
        torch.sym_min(top_n, logits.shape[2] * logits.shape[3] * anchors.shape[0])
        for logits, anchors in zip(objectness, cell_anchors, strict=True)
    )
    first = objectness[0]
    return torch.empty((first.shape[0], rows, 6), dtype=torch.float32, device=first.device)


torch.library.define("rcnn::best_boxes", SCHEMA)
torch.library.impl("rcnn::best_boxes", "CPU", best_boxes)
torch.library.register_fake("rcnn::best_boxes", _describe)
