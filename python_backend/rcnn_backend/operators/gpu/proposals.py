"""The RPN's boxes -> proposals and their RoIAligned features on a GPU.

Shapes: B images, N kept anchors per image, R proposals per image (padded), C channels.
Boxes are (x1, y1, x2, y2) in pixels of the resized image.
"""

import math
from collections.abc import Sequence

import cupy
import numpy as np

from rcnn_backend.contract.parameters import PoolParameters, ProposalParameters
from rcnn_backend.operators.gpu import kernels
from rcnn_backend.operators.gpu.roi_align import multi_scale_roi_align

WORD_BITS = 64
THREADS = 128


def propose(
    rpn_boxes: cupy.ndarray,
    features: Sequence[cupy.ndarray],
    image_sizes: cupy.ndarray,
    parameters: ProposalParameters,
    pooling: PoolParameters,
) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """NMS and RoIAlign for a batch.

    Args:
        rpn_boxes: float32 [B, N, 6]: objectness, x1, y1, x2, y2, level. Within an image, the rows of one
            level are together, and the levels are ascending.
        features: pyramid levels, float32 or float16 [B, C, h, w], finest first.
        image_sizes: float32 [B, 4], of which the first two are the resized height and width.

    Returns:
        The fields of ``rcnn_backend.operators.proposals.Proposals``: ``boxes`` float32 [B, R, 4],
        ``roialigned_feature`` [B, R, C, 7, 7] of the features' type, ``num_proposals`` int32
        [B, 1]. R is the last of ``padded_counts``; the rest is zero.
    """
    proposals, num_proposals = filter_proposals(rpn_boxes, image_sizes, parameters)
    return proposals, multi_scale_roi_align(features, proposals, num_proposals, pooling), num_proposals


def filter_proposals(
    rpn_boxes: cupy.ndarray, image_sizes: cupy.ndarray, parameters: ProposalParameters
) -> tuple[cupy.ndarray, cupy.ndarray]:
    """torchvision's RegionProposalNetwork.filter_proposals: [B, N, 6] -> boxes [B, R, 4], counts [B, 1].

    Greedy NMS within each level; among equal scores, the lower row comes first. IoU is rounded as
    in torchvision's CUDA ``nms`` and computed on the unchanged boxes. torchvision's ``batched_nms`` first
    shifts each level away from the others, which rounds the coordinates.

    Raises:
        ValueError: the rows do not have 6 columns, or there are no rows.
    """
    if rpn_boxes.ndim != 3 or rpn_boxes.shape[2] != 6 or not rpn_boxes.shape[1]:
        raise ValueError(f"rpn_boxes is {rpn_boxes.shape}: expected [B, N, 6] with N at least 1")
    batch, rows = rpn_boxes.shape[:2]
    max_proposals, words = parameters.padded_counts[-1], math.ceil(rows / WORD_BITS)
    rpn_boxes = cupy.ascontiguousarray(rpn_boxes, np.float32)
    image_sizes = cupy.ascontiguousarray(image_sizes, np.float32)
    boxes = cupy.empty((batch, rows, 4), np.float32)
    scores = cupy.empty((batch, rows), np.float32)
    segments = cupy.empty((batch, rows, 2), np.int32)
    masks = cupy.empty((batch, rows, words), np.uint64)
    kept = cupy.empty((batch, rows), np.int32)
    kept_counts = cupy.empty((batch, rows), np.int32)
    proposals = cupy.empty((batch, max_proposals, 4), np.float32)
    num_proposals = cupy.empty((batch, 1), np.int32)

    blocks, n, r = math.ceil(rows / THREADS), np.int32(rows), np.int32(max_proposals)
    limits = np.float32(parameters.score_thresh), np.float32(parameters.min_box_size)
    # 1. Clip the boxes, drop small and low-scored ones, and sort each level.
    kernels.load("nms", "sort_candidates")(
        (blocks, batch), (THREADS,), (rpn_boxes, image_sizes, n, *limits, boxes, scores, segments)
    )
    # 2. Find out which boxes of a level overlap.
    kernels.load("nms", "mark_overlaps")(
        (blocks, words, batch),
        (THREADS,),
        (boxes, segments, n, np.float32(parameters.nms_thresh), np.int32(words), masks),
    )
    # 3. Greedy suppression, one warp per level.
    kernels.load("nms", "suppress")(
        (math.ceil(rows / 32), batch),
        (32,),
        (masks, scores, segments, n, np.int32(words), r, kept, kept_counts),
        shared_mem=8 * words,
    )
    # 4. Merge the best of all levels, pad and count them.
    kernels.load("nms", "gather_proposals")(
        (math.ceil(max(rows, max_proposals) / THREADS), batch),
        (THREADS,),
        (boxes, scores, segments, kept, kept_counts, n, r, proposals, num_proposals),
    )
    return proposals, num_proposals


def warm_up(parameters: ProposalParameters, pooling: PoolParameters) -> None:
    """Compiles and loads the kernels that ``propose`` runs, for both types and layouts of features."""
    sizes = cupy.ones((1, 4), np.float32)
    rows = cupy.zeros((1, 1, 6), np.float32)
    for dtype in (np.float32, np.float16):
        for feature in (
            cupy.zeros((1, 8, 2, 2), dtype),
            cupy.zeros((1, 2, 2, 8), dtype).transpose(0, 3, 1, 2),
        ):
            propose(rows, [feature] * len(pooling.feature_strides), sizes, parameters, pooling)
