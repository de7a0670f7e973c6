"""Greedy non-maximum suppression within groups (pyramid levels or classes).

Boxes are (x1, y1, x2, y2).
"""

import numpy as np
import numpy.typing as npt

from rcnn_backend.operators import onnx_operators

Float = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def batched_nms(
    boxes: Float, scores: Float, groups: npt.NDArray[np.integer], iou_threshold: float
) -> Indices:
    """torchvision's ``batched_nms``: boxes [n, 4], scores [n], groups [n] -> kept indices, best first.

    Boxes of different groups do not suppress each other. Equal scores keep the order of
    the input. IoU is computed on the boxes as they are: torchvision's variant for up to
    1000 boxes first shifts each group away from the others, which rounds the coordinates.
    """
    by_group = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[by_group])) + 1
    kept = [
        members[onnx_operators.non_max_suppression(boxes[members], scores[members], iou_threshold)]
        for members in np.split(by_group, starts)
        if len(members)
    ]
    if not kept:
        return np.empty(0, np.int64)
    indices = np.sort(np.concatenate(kept))
    return indices[np.argsort(-scores[indices], kind="stable")]
