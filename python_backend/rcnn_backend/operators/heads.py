"""What lies around a head that runs on the final detections: their RoIAligned features, and the answers from its maps.

Shapes: B images, D detections an image (padded), M detections an image, padded to the next of a few sizes, C
channels, P keypoints. Boxes are (x1, y1, x2, y2) in pixels of the resized image.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnn_backend.contract.parameters import HeadParameters, PoolParameters
from rcnn_backend.devices import Array
from rcnn_backend.operators.keypoints import heatmaps_to_keypoints, resize_keypoints
from rcnn_backend.operators.roi_align import multi_scale_roi_align

Counts = npt.NDArray[np.int32]


def pool_detections(
    features: Sequence[Array],
    detected_boxes: Array,
    num_detections: Counts,
    parameters: HeadParameters,
    pooling: PoolParameters,
) -> Array:
    """RoIAlign of the detections: [B, M, C, *output_size_hw] of the features' type, zero where there is none.

    M is enough for the image with the most detections. It is never 0, so a batch without any costs a row an image.

    Args:
        features: pyramid levels, float32 or float16 [B, C, h, w], finest first.
        detected_boxes: float32 [B, D, 4].
        num_detections: int32 [B, 1], on the host.

    CuPy arrays are computed on their GPU.
    """
    rows = padded_count(int(num_detections.max()), parameters)
    counts = _beside(detected_boxes, num_detections)
    return multi_scale_roi_align(features, detected_boxes[:, :rows], counts, pooling)


def run_packed(
    head: Callable[[Array, Array], Array],
    pooled: Array,
    labels: Array,
    num_detections: Counts,
    parameters: HeadParameters,
) -> Array:
    """What a head makes of each detection, image by image: [n, ...], n the detections of all images.

    The head gets them side by side, without regard to their image. So one full image among many costs no more than
    its own detections.

    Args:
        head: features [B, M, ...] and labels [B, D], of which M count -> [B, M, ...].
        pooled: what ``pool_detections`` gave.
        labels: int64 [B, D].
        num_detections: int32 [B, 1], on the host.
    """
    batch, rows = pooled.shape[:2]
    images, places = np.nonzero(np.arange(rows) < num_detections)
    packed_rows = padded_count(math.ceil(len(images) / batch), parameters)
    packed_size = batch, packed_rows
    # The first image's first row fills the rest; nobody looks at what the head makes of it.
    filling = np.zeros(batch * packed_rows - len(images), np.int64)
    images_in = _beside(pooled, np.concatenate([images, filling]).reshape(packed_size))
    places_in = _beside(pooled, np.concatenate([places, filling]).reshape(packed_size))
    packed_labels = np.zeros_like(labels)
    packed_labels[:, :packed_rows] = labels[images_in, places_in]
    made = head(pooled[images_in, places_in], packed_labels)
    return made.reshape(-1, *made.shape[2:])[: len(images)]


def real_rows(padded: Array, num_detections: Counts) -> Array:
    """The rows of detections in [B, M, ...], image by image: [n, ...].

    Args:
        num_detections: int32 [B, 1], on the host; their sum is n.
    """
    return padded[_beside(padded, np.arange(padded.shape[1]) < num_detections)]


def pad_rows(rows: Array, num_detections: Counts, detections_per_img: int) -> Array:
    """The rows [n, ...] of a batch's detections, image by image -> [B, D, ...], zero where there is none.

    Args:
        num_detections: int32 [B, 1], on the host; their sum is n.
        detections_per_img: D.
    """
    images, places = np.nonzero(np.arange(detections_per_img) < num_detections)
    padded: Array = np.zeros_like(rows, shape=(len(num_detections), detections_per_img, *rows.shape[1:]))
    padded[_beside(rows, images), _beside(rows, places)] = rows
    return padded


def answer_masks(
    probabilities: Array, detected_boxes: Array, image_sizes: Array, num_detections: Counts
) -> dict[str, Array]:
    """Probabilities [n, h, w] of the detections -> ``masks`` [B, D, h, w], in the frame of each box."""
    return {"masks": pad_rows(probabilities, num_detections, detected_boxes.shape[1])}


def answer_keypoints(
    heatmaps: Array, detected_boxes: Array, image_sizes: Array, num_detections: Counts
) -> dict[str, Array]:
    """Heatmaps [n, P, h, w] of the detections -> ``keypoints`` [B, D, P, 3] and ``keypoint_scores`` [B, D, P].

    Args:
        detected_boxes: float32 [B, D, 4].
        image_sizes: float32 [B, 4]: resized height and width, original height and width.
        num_detections: int32 [B, 1], on the host; their sum is n.

    Returns:
        x and y in pixels of the pictures as sent, and visibility, which is 1; the highest value of each heatmap.
    """
    keypoints, scores = heatmaps_to_keypoints(heatmaps, real_rows(detected_boxes, num_detections))
    padded, padded_scores = (
        pad_rows(rows, num_detections, detected_boxes.shape[1]) for rows in (keypoints, scores)
    )
    return {"keypoints": resize_keypoints(padded, image_sizes), "keypoint_scores": padded_scores}


# What becomes of what a head's engine makes: a chain's ``head`` -> the function that gives its answers.
ANSWERS: dict[str, Callable[[Array, Array, Array, Counts], dict[str, Array]]] = {
    "mask": answer_masks,
    "keypoint": answer_keypoints,
}


def padded_count(count: int, parameters: HeadParameters) -> int:
    """The size that so many detections are padded to."""
    return next(size for size in parameters.padded_counts if size >= count)


def _beside(array: Array, host: npt.NDArray[Any]) -> Array:
    """The host's array where ``array`` is."""
    if isinstance(array, np.ndarray):
        return host
    import cupy  # optional

    return cupy.asarray(host)
