"""Decodes COCO's compressed run-length codes."""

from __future__ import annotations

import numpy as np

from ._masks import MaskCrop

MAX_CHARACTERS = 12  # of a run; they hold 60 bits


def decode_counts(text: str) -> list[int] | None:
    """The runs in COCO's compressed text, as in `rleFrString` of pycocotools; None if it is not such a text.

    A character holds five bits of a number and whether more follow; from the fourth run on, the number is the
    difference to the last run but one.
    """
    codes = np.array([ord(character) for character in text], np.int64) - 48
    is_last = (codes & 32) == 0
    if ((codes < 0) | (codes > 63)).any() or not is_last[-1:].all():
        return None
    ends = np.flatnonzero(is_last) + 1
    sizes = np.diff(ends, prepend=0)  # characters of each run
    if not len(sizes) or sizes.max() > MAX_CHARACTERS:
        return None if len(sizes) else []
    starts = ends - sizes
    places = np.arange(len(codes)) - np.repeat(starts, sizes)
    runs = np.add.reduceat((codes & 31) << (5 * places), starts)
    runs -= (codes[ends - 1] & 16) << (5 * sizes - 4)  # the sign
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return [int(run) for run in runs]


def decode_rle(counts: str, image_size_hw: tuple[int, int]) -> MaskCrop:
    """The mask of a compressed run-length code, cut to the rows and columns that it covers.

    Raises:
        ValueError: it is not a code of a picture of that size.
    """
    height, width = image_size_hw
    runs = np.array(decode_counts(counts) or [], np.int64)
    if not len(runs) or runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(f"{counts[:20]!r} is not a run-length code of a picture of {height}x{width} pixels")
    is_inside = np.arange(len(runs)) % 2 == 1
    covered = np.flatnonzero(is_inside & (runs > 0))
    if not len(covered):
        return MaskCrop(np.zeros((0, 0), np.bool_), 0, 0)
    # The columns between the first and the last pixel of the mask: the runs around them are cut to these.
    ends = np.cumsum(runs)
    first, last = covered[0], covered[-1]
    left, right = int(ends[first - 1]) // height, int(ends[last] - 1) // height + 1
    own = runs[first - 1 : last + 1].copy()
    own[0] = ends[first - 1] - left * height
    pixels = np.zeros((right - left, height), np.bool_)
    inside = np.repeat(is_inside[first - 1 : last + 1], own)
    pixels.ravel()[: len(inside)] = inside
    rows = np.flatnonzero(pixels.any(axis=0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return MaskCrop(np.ascontiguousarray(pixels[:, top:bottom].T), top, left)
