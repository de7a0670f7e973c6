"""The RPN's boxes -> proposals and their RoIAligned features.

Shapes: B images, N kept anchors per image, R proposals per image (padded), C channels.
Boxes are (x1, y1, x2, y2) in pixels of the resized image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rcnn_backend.contract.parameters import PoolParameters, ProposalParameters
from rcnn_backend.devices import Device
from rcnn_backend.operators.boxes import clip_boxes_to_image, is_large_enough
from rcnn_backend.operators.nms import batched_nms
from rcnn_backend.operators.roi_align import multi_scale_roi_align

Float = npt.NDArray[np.float32]


class Proposals(NamedTuple):
    """Proposals of a batch, padded with zero boxes to a common R."""

    boxes: Float  # [B, R, 4]
    roialigned_feature: Float  # [B, R, C, 7, 7]
    num_proposals: npt.NDArray[np.int32]  # [B, 1]


def propose(
    rpn_boxes: Float,
    features: Sequence[Float],
    image_sizes: Float,
    parameters: ProposalParameters,
    pooling: PoolParameters,
) -> Proposals:
    """NMS and RoIAlign for a batch.

    Args:
        rpn_boxes: float32 [B, N, 6]: objectness, x1, y1, x2, y2, level.
        features: pyramid levels, float32 or float16 [B, C, h, w], finest first.
        image_sizes: float32 [B, 4], of which the first two are the resized height and width.

    For CuPy arrays, this runs on the arrays' GPU, and R is always the last of ``padded_counts``.
    """
    if not isinstance(rpn_boxes, np.ndarray):
        from rcnn_backend.operators.gpu import proposals as gpu  # needs CuPy

        return Proposals(*gpu.propose(rpn_boxes, features, image_sizes, parameters, pooling))
    kept = [
        filter_proposals(rows, size[:2], parameters)
        for rows, size in zip(rpn_boxes, image_sizes, strict=True)
    ]
    num_proposals = np.array([[len(boxes)] for boxes in kept], np.int32)
    padded = next(count for count in parameters.padded_counts if count >= num_proposals.max())
    proposals = np.zeros((len(kept), padded, 4), np.float32)
    for image, boxes in enumerate(kept):
        proposals[image, : len(boxes)] = boxes
    pooled = multi_scale_roi_align(features, proposals, num_proposals, pooling)
    return Proposals(proposals, pooled, num_proposals)


def filter_proposals(rpn_boxes: Float, size_hw: Float, parameters: ProposalParameters) -> Float:
    """torchvision's RegionProposalNetwork.filter_proposals for one image: [N, 6] -> [n, 4], best first."""
    scores, boxes, levels = rpn_boxes[:, 0], rpn_boxes[:, 1:5], rpn_boxes[:, 5]
    boxes = clip_boxes_to_image(boxes, size_hw)
    keep = is_large_enough(boxes, parameters.min_box_size) & (scores >= np.float32(parameters.score_thresh))
    scores, boxes = scores[keep], boxes[keep]
    kept = batched_nms(boxes, scores, levels[keep].astype(np.int64), parameters.nms_thresh)[
        : parameters.padded_counts[-1]
    ]
    proposals: Float = boxes[kept]
    return proposals


def warm_up(parameters: ProposalParameters, pooling: PoolParameters, device: Device) -> None:
    """Compiles the kernels that ``propose`` runs on a GPU."""
    if device.is_gpu:
        from rcnn_backend.operators.gpu import proposals as gpu  # needs CuPy

        gpu.warm_up(parameters, pooling)
