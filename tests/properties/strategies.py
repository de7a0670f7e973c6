"""Inputs of the operators, drawn by hypothesis. Boxes are (x1, y1, x2, y2).

Arrays are made from bytes that are indices into a table of values. So a batch is drawn in microseconds, and hypothesis
still shrinks a failure to the smallest bytes, which stand for the simplest values.
"""

import math

import numpy as np
from hypothesis import strategies as st

NAN, INF = float("nan"), float("inf")
# Few different coordinates, so that boxes overlap, touch, equal each other and have an IoU of exactly a threshold.
FINITE = np.concatenate([np.arange(240) % 16, [-1, -16, -0.0, 1e-3, 1e-2, 0.5, 40, 160]]).astype(np.float32)
ANY = np.append(FINITE, np.array([NAN, INF, -INF, 1e30, -1e30, 1e-30, 3e38, -3e38], np.float32))
ODD_SCORES = [NAN, INF, -INF, -1, 0.05, np.nextafter(np.float32(0.05), np.float32(1)), 0.3, 0.5]
SCORES = np.concatenate([np.arange(248) % 31 / 31, ODD_SCORES]).astype(np.float32)  # with ties
LOGITS = np.concatenate([np.arange(248) % 62 / 8 - 4, ODD_SCORES]).astype(np.float32)
THRESHOLDS = [0.5, 0.3, 0.7, 0.05, 0.0, 1.0, 0.2, 1 / 3]

scales = st.sampled_from([1, 0.125, 10, 0.1, 1 / 3, 7.3, 100])
thresholds = st.sampled_from(THRESHOLDS) | st.floats(0, 1)
sides = st.integers(1, 64) | st.sampled_from([1, 4000])
sizes_hw = st.tuples(sides, sides)


def array_of(table: np.ndarray, *shape: int) -> st.SearchStrategy[np.ndarray]:
    """An array of this shape with values from a table of at most 256."""
    size = math.prod(shape)
    return st.binary(min_size=size, max_size=size).map(
        lambda drawn: table[np.frombuffer(drawn, np.uint8) % len(table)].reshape(shape)
    )


def boxes(*shape: int, table: np.ndarray = ANY) -> st.SearchStrategy[np.ndarray]:
    """float32 [*shape, 4]: overlapping, equal, without area, inverted, outside; with ``ANY`` also huge, inf and NaN."""
    return st.builds(_corners, array_of(table, *shape, 4), scales)


@np.errstate(invalid="ignore", over="ignore")
def _corners(corner_and_sides: np.ndarray, scale: float) -> np.ndarray:
    corner, box_sides = corner_and_sides[..., :2], corner_and_sides[..., 2:]
    return np.concatenate([corner, corner + box_sides], axis=-1) * np.float32(scale)
