"""Label Studio's run-length codes of masks: those of the package rle-pack, for the picture's RGBA values.

H, W: height and width of the picture; R: runs of equal values, each at most 65536 long.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..._masks import MaskCrop
from ..._outlines import run_lengths

CHANNELS = 4
LENGTH_BITS = np.array([3, 4, 8, 16])  # a run's length is written with the smallest of these that is enough
MAX_LENGTH = 2**16


def encode_brush(crop: MaskCrop, image_size_hw: tuple[int, int]) -> list[int]:
    """A mask as the bytes of Label Studio's format "rle", as its converter's `mask2rle` encodes it.

    The code is that of uint8 [H, W, 4], row by row: 255 in every channel inside the mask, 0 outside.
    """
    height, width = image_size_hw
    transposed = MaskCrop(crop.mask.T, crop.left, crop.top)
    lengths, values = _split(CHANNELS * run_lengths(transposed, (width, height)))
    # 1. The head: the number of values, the bits of a value minus 1, and the bits of each of the four lengths minus 1.
    head = f"{CHANNELS * height * width:032b}{8 - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in LENGTH_BITS)
    # 2. A run: 1, which of the four lengths, the length minus 1, the value. A single value: 0 instead of the 1.
    which = np.searchsorted(2**LENGTH_BITS, lengths)  # [R]
    num_bits = LENGTH_BITS[which]
    code = (((lengths > 1) << 2 | which) << num_bits | (lengths - 1)) << 8 | values
    place = np.arange(1 + 2 + 16 + 8)[::-1]
    bits = (code[:, None] >> place & 1).astype(np.uint8)  # [R, 27], the highest first
    is_used = place < (1 + 2 + num_bits + 8)[:, None]
    packed = np.packbits(np.concatenate((np.frombuffer(head.encode(), np.uint8) - ord("0"), bits[is_used])))
    return [int(byte) for byte in packed]


def _split(runs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Alternating runs of 0 and 255, the first of which may be empty -> lengths and values, int64 [R]."""
    num_parts = -(-runs // MAX_LENGTH)
    lengths = np.full(num_parts.sum(), MAX_LENGTH, np.int64)
    last = np.cumsum(num_parts)[num_parts > 0] - 1
    lengths[last] -= (num_parts * MAX_LENGTH - runs)[num_parts > 0]
    return lengths, np.repeat(np.where(np.arange(len(runs)) % 2, 255, 0), num_parts)
