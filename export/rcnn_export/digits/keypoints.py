"""The keypoints of a digit: the points where its ink extends farthest up, right, down and left.

They are computed from the ink alone, so they are exact. Each is the centre of a pixel.
"""

import numpy as np
from numpy.typing import NDArray

KEYPOINT_NAMES = ("top", "right", "bottom", "left")
SKELETON = ((1, 2), (2, 3), (3, 4), (4, 1))  # positions from 1, as COCO counts them
HIDDEN, VISIBLE = 1, 2  # COCO's visibility of a labelled keypoint


def extreme_points(ink: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The column and row of each keypoint, int64 [4, 2], in ink [h, w].

    If the ink extends equally far in several pixels, the keypoint is the middle of the longest run of them, or of the first
    such run if several are equally long.
    """
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    return np.array(
        [
            (_middle_of_run(ink[top]), top),
            (right, _middle_of_run(ink[:, right])),
            (_middle_of_run(ink[bottom]), bottom),
            (left, _middle_of_run(ink[:, left])),
        ]
    )


def _middle_of_run(line: NDArray[np.bool_]) -> int:
    edges = np.flatnonzero(np.diff(line, prepend=False, append=False))  # starts and ends, in turn
    starts, ends = edges[0::2], edges[1::2]
    longest = np.argmax(ends - starts)
    return int((starts[longest] + ends[longest] - 1) // 2)
