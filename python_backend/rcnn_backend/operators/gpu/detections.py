"""The header's scores and boxes -> final detections on a GPU.

Shapes: B images, R proposals per image (padded), K foreground classes, D detections per
image (padded). Boxes are (x1, y1, x2, y2) in pixels.
"""

from collections.abc import Sequence

import cupy
import numpy as np

from rcnn_backend.contract.parameters import DetectionParameters
from rcnn_backend.operators.gpu import kernels

SUPPRESS_THREADS, GATHER_THREADS = 256, 512
ORDER_BYTES, BOX_BYTES = 8, 16


def detect(
    class_scores: cupy.ndarray,
    class_boxes: cupy.ndarray,
    num_proposals: cupy.ndarray,
    image_sizes: cupy.ndarray,
    parameters: Sequence[DetectionParameters],
    detections_per_img: int,
) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """Score threshold, per-class NMS, top D and scaling back, for a batch.

    Among equal scores, the lower proposal comes first, then the lower class. IoU is rounded as in
    torchvision's CUDA ``nms``.

    Args:
        class_scores: float32 [B, R, K], softmax without the background; R at most 4096 on most GPUs.
        class_boxes: float32 [B, R, K, 4] in pixels of the resized image.
        num_proposals: int32 [B, 1], how many of the R proposals are real.
        image_sizes: float32 [B, 4]: resized height and width, original height and width.
        parameters: the thresholds of each image, which a request may have overridden.
        detections_per_img: D, the model's own value, which no override exceeds.

    Returns:
        The fields of ``rcnn_backend.operators.detections.Detections``: ``boxes`` float32 [B, D, 4] in pixels
        of the images as sent, ``scores`` float32 [B, D], ``labels`` int64 [B, D] in 1..K,
        ``num_detections`` int32 [B, 1], ``detected_boxes`` float32 [B, D, 4] in pixels of the resized images. They
        are sorted, the best first; the rest is zero.

    Raises:
        ValueError: more proposals than the GPU's shared memory can sort.
    """
    batch, rois, classes = class_scores.shape
    max_detections = detections_per_img
    thresholds = [
        (limits.score_thresh, limits.nms_thresh, limits.min_box_size, limits.detections_per_img)
        for limits in parameters
    ]
    class_scores = cupy.ascontiguousarray(class_scores, np.float32)
    class_boxes = cupy.ascontiguousarray(class_boxes, np.float32)
    num_proposals = cupy.ascontiguousarray(num_proposals, np.int32)
    image_sizes = cupy.ascontiguousarray(image_sizes, np.float32)
    limits = cupy.asarray(np.array(thresholds, np.float32))  # [B, 4]
    kept = cupy.empty((batch, classes, max_detections), np.uint64)
    kept_counts = cupy.empty((batch, classes), np.int32)
    boxes = cupy.empty((batch, max_detections, 4), np.float32)
    detected_boxes = cupy.empty_like(boxes)
    scores = cupy.empty((batch, max_detections), np.float32)
    labels = cupy.empty((batch, max_detections), np.int64)
    num_detections = cupy.empty((batch, 1), np.int32)
    shape = np.int32(rois), np.int32(classes), np.int32(max_detections)

    # 1. For each class of each image: threshold, sort, greedy suppression.
    capacity = _power_of_two(max(rois, 32))
    shared = capacity * (BOX_BYTES + ORDER_BYTES) + capacity // 8
    kernels.load("detections", "suppress_classes", shared)(
        (classes, batch),
        (SUPPRESS_THREADS,),
        (
            class_scores,
            class_boxes,
            num_proposals,
            image_sizes,
            limits,
            *shape,
            np.int32(capacity),
            kept,
            kept_counts,
        ),
        shared_mem=shared,
    )
    # 2. For each image: the best detections of all classes, scaled back, padded and counted.
    capacity = _power_of_two(max_detections + GATHER_THREADS)
    shared = capacity * ORDER_BYTES
    inputs = class_scores, class_boxes, image_sizes, limits, kept, kept_counts
    kernels.load("detections", "gather_detections", shared)(
        (batch,),
        (GATHER_THREADS,),
        (*inputs, *shape, np.int32(capacity), boxes, detected_boxes, scores, labels, num_detections),
        shared_mem=shared,
    )
    return boxes, scores, labels, num_detections, detected_boxes


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def warm_up(parameters: DetectionParameters) -> None:
    """Compiles and loads the kernels that ``detect`` runs."""
    boxes = cupy.zeros((1, 1, 1, 4), np.float32)
    counts, sizes = cupy.zeros((1, 1), np.int32), cupy.ones((1, 4), np.float32)
    detect(boxes[..., 0], boxes, counts, sizes, [parameters], parameters.detections_per_img)
