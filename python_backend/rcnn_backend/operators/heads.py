"""The input and output of a head that runs on the final detections: their RoIAligned features, and the head's answers.

Shapes: B images, D detections per image (padded), M detections per image, padded to the next of a few sizes, C
channels, P keypoints. Boxes are (x1, y1, x2, y2) in pixels of the resized image.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rcnn_backend.contract.parameters import HeadParameters, PoolParameters, RleParameters
from rcnn_backend.devices import Array
from rcnn_backend.operators.keypoints import heatmaps_to_keypoints, resize_keypoints
from rcnn_backend.operators.rles import encode_rles
from rcnn_backend.operators.roi_align import multi_scale_roi_align

Counts = npt.NDArray[np.int32]


def pool_detections(
    features: Sequence[Array],
    detected_boxes: Array,
    num_detections: Counts,
    parameters: HeadParameters,
    pooling: PoolParameters,
) -> Array:
    """RoIAlign of the detections: [B, M, C, *output_size_hw] of the features' type, zero where there is no detection.

    M is enough for the image with the most detections. M is never 0, so a batch without detections costs one row per
    image.

    Args:
        features: pyramid levels, float32 or float16 [B, C, h, w], finest first.
        detected_boxes: float32 [B, D, 4].
        num_detections: int32 [B, 1], on the host.

    For CuPy arrays, this runs on the arrays' GPU.
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
    """The output of a head for each detection, image by image: [n, ...] for the n detections of all images.

    The rows are packed without gaps before the head runs, so a row may move to another image of the batch. That way, one
    image with many detections does not make the head compute as many rows for all other images.

    Args:
        head: features [B, M, ...] and labels [B, D], of which the first M of each image count -> [B, M, ...].
        pooled: the result of ``pool_detections``.
        labels: int64 [B, D].
        num_detections: int32 [B, 1], on the host.
    """
    batch, rows = pooled.shape[:2]
    images, places = np.nonzero(np.arange(rows) < num_detections)
    packed_rows = padded_count(math.ceil(len(images) / batch), parameters)
    packed_size = batch, packed_rows
    # The first row of the first image fills the rest; the head's output for it is not used.
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
    """The rows [n, ...] of a batch's detections, image by image -> [B, D, ...], zero where there is no detection.

    Args:
        num_detections: int32 [B, 1], on the host; their sum is n.
        detections_per_img: D.
    """
    images, places = np.nonzero(np.arange(detections_per_img) < num_detections)
    padded: Array = np.zeros_like(rows, shape=(len(num_detections), detections_per_img, *rows.shape[1:]))
    padded[_beside(rows, images), _beside(rows, places)] = rows
    return padded


class HeadOutput(NamedTuple):
    """The output of a head for the n detections of a batch, and the other data that its answers are computed from."""

    rows: Array  # [n, ...], image by image
    detected_boxes: Array  # float32 [B, D, 4]
    image_sizes: Array  # float32 [B, 4]: resized height and width, original height and width
    num_detections: Counts  # [B, 1], on the host; their sum is n
    rle_parameters: Sequence[RleParameters] = ()  # those of each image, if there are masks

    def padded(self, rows: Array) -> Array:
        """Rows [n, ...] -> [B, D, ...]."""
        return pad_rows(rows, self.num_detections, self.detected_boxes.shape[1])


def answer_masks(probabilities: HeadOutput) -> dict[str, Array]:
    """Probabilities [n, h, w] -> ``masks`` [B, D, h, w], in the frame of each box."""
    return {"masks": probabilities.padded(probabilities.rows)}


def answer_rles(probabilities: HeadOutput) -> dict[str, Array]:
    """Probabilities [n, h, w] -> ``rles``, bytes [B, D] on the host: masks of the pictures as sent."""
    counts = probabilities.num_detections
    boxes, sizes = _on_host(probabilities.detected_boxes), _on_host(probabilities.image_sizes)
    masks = pad_rows(probabilities.rows, counts, max(1, int(counts.max())))
    return {"rles": encode_rles(masks, boxes, counts, sizes, probabilities.rle_parameters)}


def answer_keypoints(heatmaps: HeadOutput) -> dict[str, Array]:
    """Heatmaps [n, P, h, w] -> ``keypoints`` [B, D, P, 3] and ``keypoint_scores`` [B, D, P].

    Returns:
        For each keypoint x and y in pixels of the picture as sent, and the visibility, which is 1. The scores are the
        highest values of the heatmaps.
    """
    boxes = real_rows(heatmaps.detected_boxes, heatmaps.num_detections)
    keypoints, scores = (heatmaps.padded(rows) for rows in heatmaps_to_keypoints(heatmaps.rows, boxes))
    return {"keypoints": resize_keypoints(keypoints, heatmaps.image_sizes), "keypoint_scores": scores}


# The functions that compute the answers from a head's output, by step name.
ANSWERS: dict[str, Callable[[HeadOutput], dict[str, Array]]] = {
    "masks": answer_masks,
    "rles": answer_rles,
    "keypoints": answer_keypoints,
}


def padded_count(count: int, parameters: HeadParameters) -> int:
    """The number of rows that ``count`` detections are padded to."""
    return next(size for size in parameters.padded_counts if size >= count)


def _beside(array: Array, host: npt.NDArray[Any]) -> Array:
    """The host array ``host``, on the same device as ``array``."""
    if isinstance(array, np.ndarray):
        return host
    import cupy  # optional

    return cupy.asarray(host)


def _on_host(array: Array) -> npt.NDArray[Any]:
    host: npt.NDArray[Any] = array if isinstance(array, np.ndarray) else array.get()
    return host
