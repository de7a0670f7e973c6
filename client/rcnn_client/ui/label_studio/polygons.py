"""Reduces outlines to a few corners, which a person can move.

N: number of corners of an outline, M: number of corners that are kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def simplify(outline: NDArray[np.float32], tolerance: float) -> NDArray[np.float32]:
    """Simplify a closed outline (Douglas-Peucker): no corner is further than `tolerance` from the result.

    Args:
        outline: [N, 2], x and y in pixels; the last corner is joined to the first.
        tolerance: in pixels.

    Returns:
        [M, 2], in the same order; fewer than 3 corners if the outline is thinner than the tolerance.
    """
    corners = np.concatenate((outline, outline[:1])).astype(np.float64)
    opposite = int(np.argmax(np.hypot(*(corners - corners[0]).T)))
    is_kept = np.zeros(len(corners), np.bool_)
    is_kept[[0, opposite]] = True
    spans = [(0, opposite), (opposite, len(corners) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distances = _distances(corners[first + 1 : last], corners[first], corners[last])
        furthest = int(np.argmax(distances))
        if distances[furthest] > tolerance:
            middle = first + 1 + furthest
            is_kept[middle] = True
            spans += [(first, middle), (middle, last)]
    kept: NDArray[np.float32] = outline[is_kept[:-1]]
    return kept


def _distances(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The distances [N] of points [N, 2] from the segment between `start` and `end`."""
    along, from_start = end - start, points - start
    share = np.clip(from_start @ along / max(along @ along, 1e-12), 0, 1)
    return np.asarray(np.hypot(*(from_start - share[:, None] * along).T))
