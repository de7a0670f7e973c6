"""Box arithmetic of torchvision.ops.boxes. Boxes are (x1, y1, x2, y2) in pixels."""

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]


def clip_boxes_to_image(boxes: Float, size_hw: Float) -> Float:
    """Clips boxes [..., 4] to an image of size (height, width): x to 0..width, y to 0..height."""
    height, width = size_hw
    return boxes.clip(0, np.array([width, height, width, height], np.float32))


def is_large_enough(boxes: Float, min_size: float) -> npt.NDArray[np.bool_]:
    """torchvision's ``remove_small_boxes`` as a mask [n]: both sides at least ``min_size`` pixels."""
    sides = boxes[:, 2:] - boxes[:, :2]  # [n, 2]
    mask: npt.NDArray[np.bool_] = (sides >= np.float32(min_size)).all(axis=1)
    return mask


def box_area(boxes: Float) -> Float:
    """Areas [n] of boxes [n, 4], in square pixels."""
    sides = boxes[:, 2:] - boxes[:, :2]
    area: Float = sides[:, 0] * sides[:, 1]
    return area
