"""Masks as run-length codes and as polygons, both from the edges of their pixels.

H, W: height and width of the picture; E: number of unit edges between a pixel of the mask and the pixel above or below
it that does not belong to the mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._masks import MaskCrop


def encode_rle(crop: MaskCrop, image_size_hw: tuple[int, int]) -> dict[str, Any]:
    """A mask as COCO's compressed run-length code, equal to `pycocotools.mask.encode`.

    Returns:
        `size`, H and W, and `counts`, the lengths of the runs in the picture's columns, as text.
    """
    return {"size": list(image_size_hw), "counts": _compress(run_lengths(crop, image_size_hw))}


def run_lengths(crop: MaskCrop, image_size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """The lengths of the runs along the picture's columns, int64: alternately outside the mask and inside it.

    The first run is outside the mask and may be empty.
    """
    height, width = image_size_hw
    rows, columns, _ = _horizontal_edges(crop.mask)
    # Alternately the starts and ends of runs. A run that reaches the end of a column may continue in the next.
    ends, times = np.unique((crop.left + columns) * height + crop.top + rows, return_counts=True)
    ends = np.concatenate(([0], ends[times == 1], [height * width]))
    counts = np.diff(ends)
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def trace_polygons(crop: MaskCrop) -> list[NDArray[np.float32]]:
    """The outer outlines of a mask along the edges of its pixels; holes are left out.

    Pixels that touch only at a corner belong to different outlines.

    Returns:
        for each outline float32 [corners, 2], x and y in pixels of the picture, in clockwise order as seen.
    """
    rows, columns, is_top = _horizontal_edges(crop.mask)
    if not len(rows):
        return []
    # 1. Edges in a row, in line and on the same side of the mask form a segment, from its left to its right end.
    continues = (np.diff(rows) == 0) & (np.diff(columns) == 1) & (is_top[1:] == is_top[:-1])
    is_first, is_last = np.append(True, ~continues), np.append(~continues, True)
    is_top = is_top[is_first]
    x = np.stack((columns[is_first], columns[is_last] + 1), axis=1).ravel()  # [2 * segments]
    y = np.repeat(rows[is_first], 2)
    # 2. In each column of corners, vertical edges join the first to the second, the third to the fourth, and so
    # on. Where two pixels touch at a corner, the edge of the upper one ends and that of the lower one begins.
    order = np.lexsort((np.repeat(is_top, 2), y, x))
    joined = np.empty_like(order)
    joined[order[0::2]], joined[order[1::2]] = order[1::2], order[0::2]
    # 3. Follow the segments. The first one of an outline is its highest, and a top edge unless it is a hole's.
    next_corner, polygons = joined.tolist(), []
    is_free = [True] * len(is_top)
    for segment, is_outer in enumerate(is_top.tolist()):
        if not is_free[segment]:
            continue
        corners, corner = [], 2 * segment
        while is_free[corner // 2]:
            is_free[corner // 2] = False
            corners += [corner, corner ^ 1]
            corner = next_corner[corner ^ 1]
        if is_outer:
            ring = np.stack((crop.left + x[corners], crop.top + y[corners]), axis=1)
            polygons.append(ring.astype(np.float32))
    return polygons


def _horizontal_edges(
    mask: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Row and column of each edge, int64 [E], in reading order, and whether the mask lies below it, bool [E]."""
    height, width = mask.shape
    padded = np.zeros((height + 2, width), np.bool_)
    padded[1:-1] = mask
    rows, columns = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), max(width, 1))
    return rows, columns, padded[rows + 1, columns]


def _compress(counts: NDArray[np.int64]) -> str:
    """COCO's text of run lengths: from the fourth on, less the last but one; 5 bits a character, the lowest first."""
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    digits = []
    is_open = np.ones(len(rest), np.bool_)
    while is_open.any():
        low, rest = rest & 0x1F, rest >> 5  # arithmetic: the sign stays
        goes_on = np.where(low & 0x10, rest != -1, rest != 0)
        digits.append(np.where(is_open, 48 + low + 0x20 * goes_on, 0))
        is_open &= goes_on
    text = np.stack(digits, axis=1).astype(np.uint8)  # [runs, characters]
    return bytes(text[text > 0]).decode("ascii")
