"""Masks and keypoints of detections as COCO writes them."""

from __future__ import annotations

from typing import Any

from .. import Detections

SHAPES = ("segmentation", "keypoints", "num_keypoints")


def shape_fields(detections: Detections) -> list[dict[str, Any]]:
    """For each detection the fields of its mask and of its keypoints, if the model returns them.

    Returns:
        `segmentation`, a compressed run-length code; `keypoints`, x, y, visibility of each; `num_keypoints`, the number
        of keypoints with a visibility above 0; and `keypoint_scores`. Reading the numbers gives the same float32.
    """
    fields: list[dict[str, Any]] = [{} for _ in range(len(detections))]
    if detections.has_masks:
        for each, segmentation in zip(fields, detections.rle(), strict=True):
            each["segmentation"] = segmentation
    if detections.keypoints is not None and detections.keypoint_scores is not None:
        for each, points, scores in zip(
            fields, detections.keypoints, detections.keypoint_scores, strict=True
        ):
            each["keypoints"] = [float(str(value)) for value in points.ravel()]
            each["num_keypoints"] = int((points[:, 2] > 0).sum())
            each["keypoint_scores"] = [float(str(score)) for score in scores]
    return fields
