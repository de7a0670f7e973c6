"""RoIAlign over a feature pyramid: torchvision's MultiScaleRoIAlign.

Shapes: B images, R RoIs per image, C channels, L levels. Boxes are (x1, y1, x2, y2) in
pixels of the resized image.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rcnn_backend.contract.parameters import PoolParameters
from rcnn_backend.operators import openvino_operators
from rcnn_backend.operators.boxes import box_area

Float = npt.NDArray[np.float32]
LEVEL_EPS = np.float32(1e-6)


def assign_levels(boxes: Float, parameters: PoolParameters) -> npt.NDArray[np.int64]:
    """The pyramid level [n] from which each box [n, 4] is pooled; 0 is the finest (FPN paper, equation 1).

    A box without area is pooled from the finest level. The same is true for a box with a negative side, for which
    torchvision gives zeros; no preceding operator makes such a box.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = np.sqrt(box_area(boxes))
        relative = np.log2(size / np.float32(parameters.canonical_scale))
    level = np.floor(np.float32(parameters.canonical_level) + relative + LEVEL_EPS)
    finest, coarsest = np.log2([parameters.feature_strides[0], parameters.feature_strides[-1]])
    clipped = np.fmin(np.fmax(level, finest), coarsest)  # NaN becomes the finest level
    levels: npt.NDArray[np.int64] = (clipped - finest).astype(np.int64)
    return levels


def multi_scale_roi_align(
    features: Sequence[Float],
    proposals: Float,
    num_proposals: npt.NDArray[np.int32],
    parameters: PoolParameters,
) -> Float:
    """Pools each real proposal from its level; ``aligned=False`` as in torchvision.

    Args:
        features: L float32 or float16 arrays [B, C, h, w], finest first.
        proposals: float32 [B, R, 4], of which the first ``num_proposals[b]`` of image b are real.

    Returns:
        [B, R, C, *output_size_hw] of the features' type, zero where there is no proposal.

    For CuPy arrays, this runs on the arrays' GPU.
    """
    if not isinstance(proposals, np.ndarray):
        from rcnn_backend.operators.gpu import roi_align as gpu  # needs CuPy

        return gpu.multi_scale_roi_align(features, proposals, num_proposals, parameters)
    pooled = np.empty((*proposals.shape[:2], features[0].shape[1], *parameters.output_size_hw), np.float32)
    for image, count in enumerate(num_proposals.reshape(-1)):
        boxes = proposals[image, :count]
        levels = assign_levels(boxes, parameters)
        by_level = np.argsort(levels, kind="stable")
        rows = np.full(len(pooled[image]), count, np.int32)
        rows[by_level] = np.arange(count)
        openvino_operators.roi_align(
            [feature[image : image + 1].astype(np.float32, copy=False) for feature in features],
            [boxes[levels == level] for level in range(len(features))],
            rows,
            parameters.feature_strides,
            parameters.sampling_ratio,
            pooled[image],
        )
    return pooled.astype(features[0].dtype, copy=False)
