"""Pastes the masks of boxes into their picture, like torchvision's `paste_masks_in_image`.

n masks, M: side of a mask as the model returns it, H, W: height and width of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-5  # an interpolated value may be this much above or below the two values it lies between


class MaskCrop(NamedTuple):
    """The part of a picture that the mask of one box may cover.

    Attributes:
        mask: bool [h, w], whether each pixel belongs to the object; h and w are 0 outside the picture.
        top: the row of the picture at which the mask starts.
        left: the column of the picture at which the mask starts.
    """

    mask: NDArray[np.bool_]
    top: int
    left: int


def paste_crops(
    probabilities: NDArray[np.floating],
    boxes: NDArray[np.float32],
    image_size_hw: tuple[int, int],
    mask_thresh: float,
) -> Iterator[MaskCrop]:
    """Yield each mask as the part of the picture that it may cover: the pixels above the threshold.

    Args:
        probabilities: [n, M, M], 0 to 1, each in the frame of its box.
        boxes: [n, 4], x1, y1, x2, y2 in pixels of the picture.
    """
    side = probabilities.shape[-1]
    padded = np.pad(probabilities.astype(np.float32), ((0, 0), (1, 1), (1, 1)))  # [n, M+2, M+2]
    frames = _expand(boxes, (side + 2) / side)
    height, width = image_size_hw
    for values, (x1, y1, x2, y2) in zip(padded, frames.tolist(), strict=True):
        rows, columns = _sample(y1, y2, height, side + 2), _sample(x1, x2, width, side + 2)
        yield MaskCrop(_interpolate(values, rows, columns, mask_thresh), rows.start, columns.start)


class _Axis(NamedTuple):
    """Where the pixels of one axis lie between the values of the mask."""

    start: int  # the first pixel, in the picture
    before: NDArray[np.int64]  # [pixels], ascending
    after: NDArray[np.int64]  # [pixels]
    weight: NDArray[np.float32]  # [pixels], of the value after


def _expand(boxes: NDArray[np.float32], scale: float) -> NDArray[np.int64]:
    """The boxes enlarged around their centres, in whole pixels (truncated)."""
    first, second = boxes[:, :2], boxes[:, 2:]
    half, centre = (second - first) * np.float32(0.5), (second + first) * np.float32(0.5)
    half = half * np.float32(scale)
    return np.concatenate((centre - half, centre + half), axis=1).astype(np.int64)


def _sample(first: int, last: int, size: int, num_values: int) -> _Axis:
    """The pixels from `first` to `last`, cut to the picture, between `num_values` values."""
    count = max(last - first + 1, 1)
    start, stop = max(first, 0), min(last + 1, size)
    centres = np.arange(start - first, stop - first) + 0.5
    positions = np.maximum(float(np.float32(num_values / count)) * centres - 0.5, 0).astype(np.float32)
    before = np.minimum(positions.astype(np.int64), num_values - 1)
    weight = np.minimum(positions - before.astype(np.float32), np.float32(1))
    return _Axis(start, before, np.minimum(before + 1, num_values - 1), weight)


def _interpolate(
    values: NDArray[np.float32], rows: _Axis, columns: _Axis, thresh: float
) -> NDArray[np.bool_]:
    """Whether the values, interpolated bilinearly, are above the threshold: bool [rows, columns].

    The pixels between two rows of values form a strip. A pixel lies between the interpolated values above and
    below it. So most columns of a strip are above or below the threshold as a whole, and only the others are
    interpolated.
    """
    along_x = _between(values[:, columns.before], values[:, columns.after], columns.weight)  # [M+2, columns]
    crop = np.empty((len(rows.before), len(columns.before)), np.bool_)
    starts = np.searchsorted(rows.before, np.arange(len(values) + 1))
    for row in range(len(values)):
        strip, weight = crop[starts[row] : starts[row + 1]], rows.weight[starts[row] : starts[row + 1], None]
        if not strip.size:
            continue
        first, second = along_x[row], along_x[min(row + 1, len(values) - 1)]
        lowest, highest = np.minimum(first, second), np.maximum(first, second)
        is_mixed = (lowest <= thresh + ROUNDING) & (highest > thresh - ROUNDING)
        if 2 * np.count_nonzero(is_mixed) > len(is_mixed):
            np.greater(_between(first, second, weight), np.float32(thresh), out=strip)
        else:
            strip[:] = lowest > thresh
            mixed = np.flatnonzero(is_mixed)
            strip[:, mixed] = _between(first[mixed], second[mixed], weight) > np.float32(thresh)
    return crop


def _between(
    before: NDArray[np.float32], after: NDArray[np.float32], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The weighted mean of two values, rounded as by torch on a CPU with fused multiply-add."""
    share = (1 - weight).astype(np.float64)
    return (before * share + after * weight).astype(np.float32)
