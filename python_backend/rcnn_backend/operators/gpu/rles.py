"""The edges of pasted masks on a GPU.

Shapes: n detections in one image; a mask has h x w values and E edges.
"""

import math
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from rcnn_backend.operators.gpu import kernels

Host = np.ndarray[Any, Any]
THREADS = 256  # columns per block


def find_edges(
    masks: cupy.ndarray, frames: Host, image_size_hw: tuple[int, int], mask_thresh: float
) -> Iterator[Host]:
    """The edges of each mask. Waits for the GPU.

    Args:
        masks: float16 [n, h, w].
        frames: int64 [n, 4], x1, y1, x2, y2 of the masks with a border of zeros, in pixels of the picture; x2 and y2 are
            included.
        image_size_hw: the size of the picture, which has fewer than 2**31 pixels; an edge is the number of a pixel.
        mask_thresh: pixels above it belong to the mask.

    Yields:
        int32 [E] on the host, ascending. The end of a column and the start of the next one are the same edge.
    """
    left, right = frames[:, 0], frames[:, 2]
    stop = (right.clip(left) + 1).clip(max=image_size_hw[1])  # a frame is at least a pixel wide
    num_columns = (stop - left.clip(0)).clip(0)
    last_columns = np.cumsum(num_columns)
    if not len(frames) or not last_columns[-1]:
        yield from (np.zeros(0, np.int32) for _ in frames)
        return
    table = np.column_stack([frames, last_columns - num_columns]).astype(np.int32)
    counts = cupy.empty(int(last_columns[-1]), np.int32)
    grid = math.ceil(int(num_columns.max()) / THREADS), len(frames)
    arguments = (
        cupy.ascontiguousarray(masks),
        cupy.asarray(table),
        *map(np.int32, (*masks.shape[1:], *image_size_hw)),
        np.float32(mask_thresh),
        counts,
    )
    nothing = np.uintp(0)
    kernels.load("paste_masks", "find_edges<false>")(grid, (THREADS,), (*arguments, nothing, nothing))
    ends = cupy.cumsum(counts, dtype=np.int32)
    mask_ends = np.append(0, ends.get())[last_columns]  # a mask may have no column
    edges = cupy.empty(int(mask_ends[-1]), np.int32)
    kernels.load("paste_masks", "find_edges<true>")(grid, (THREADS,), (*arguments, ends, edges))
    yield from np.split(edges.get(), mask_ends[:-1])


def warm_up() -> None:
    """Compiles and loads the kernels that ``find_edges`` runs."""
    list(find_edges(cupy.ones((1, 1, 1), np.float16), np.array([[0, 0, 2, 2]]), (3, 3), 0.5))
