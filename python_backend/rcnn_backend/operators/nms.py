"""Greedy non-maximum suppression within groups (pyramid levels or classes).

Boxes are (x1, y1, x2, y2).
"""

import numpy as np
import numpy.typing as npt

from rcnn_backend.operators import openvino_operators

Float = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def batched_nms(
    boxes: Float, scores: Float, groups: npt.NDArray[np.integer], iou_threshold: float
) -> Indices:
    """torchvision's ``batched_nms``: boxes [n, 4], scores [n], groups [n] -> kept indices, best first.

    Boxes of different groups do not suppress each other. Boxes with equal scores keep the order of
    the input. IoU is computed on the unchanged boxes. torchvision's variant for up to
    1000 boxes first shifts each group away from the others, which rounds the coordinates.
    """
    if not len(boxes):
        return np.empty(0, np.int64)
    _, group_of, counts = np.unique(groups, return_inverse=True, return_counts=True)
    by_group = np.argsort(group_of, kind="stable")
    place = np.arange(len(boxes)) - np.repeat(counts.cumsum() - counts, counts)  # within its group
    members = np.zeros((len(counts), counts.max()), np.int64)  # [G, n], each group padded to the largest
    members[group_of[by_group], place] = by_group
    is_real = np.arange(counts.max()) < counts[:, None]  # [G, n]
    kept = openvino_operators.non_max_suppression(
        boxes[members], np.where(is_real, scores[members], np.float32(-np.inf)), iou_threshold
    )
    indices = np.sort(members[kept[:, 0], kept[:, 1]])
    return indices[np.argsort(-scores[indices], kind="stable")]
