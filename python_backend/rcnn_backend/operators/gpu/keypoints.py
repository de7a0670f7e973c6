"""A keypoint header's heatmaps -> keypoints on a GPU.

Shapes: n detections, P keypoints per detection. Boxes are (x1, y1, x2, y2) and keypoints (x, y, visibility), both in
pixels.
"""

import cupy
import numpy as np
import numpy.typing as npt

from rcnn_backend.operators.gpu import kernels

THREADS = 512  # as in keypoints.cu


def heatmaps_to_keypoints(heatmaps: cupy.ndarray, boxes: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray]:
    """torchvision's ``heatmaps_to_keypoints``: the position of the maximum of each heatmap, resized to its box.

    The interpolation is bicubic, in float32. Among equal values, the first in row-major order is used. NaN counts as
    the largest value. If a heatmap contains inf, its score is inf or NaN.

    Args:
        heatmaps: float32 or float16 [n, P, h, w], logits in the frame of each box.
        boxes: float32 [n, 4], sides up to 65535. A side shorter than one pixel counts as one pixel.

    Returns:
        The keypoints, float32 [n, P, 3], in the same pixels as the boxes and with a visibility of 1; and their scores,
        float32 [n, P], the largest values.

    Raises:
        ValueError: the heatmaps have another type.
    """
    detections, keypoints, height, width = heatmaps.shape
    kernel = kernels.load("keypoints", f"find_keypoints<{kernels.cpp_type(heatmaps.dtype)}>")
    found = cupy.empty((detections, keypoints, 3), np.float32)
    scores = cupy.empty((detections, keypoints), np.float32)
    if detections:
        inputs = cupy.ascontiguousarray(heatmaps), cupy.ascontiguousarray(boxes, np.float32)
        grid = detections, keypoints
        kernel(grid, (THREADS,), (*inputs, np.int32(height), np.int32(width), found, scores))
    return found, scores


def warm_up(dtype: npt.DTypeLike) -> None:
    """Compiles and loads the kernel that ``heatmaps_to_keypoints`` runs."""
    heatmaps_to_keypoints(cupy.zeros((1, 1, 1, 1), dtype), cupy.zeros((1, 4), np.float32))
