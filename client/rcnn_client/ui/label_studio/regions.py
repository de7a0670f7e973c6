"""Detections as regions of Label Studio.

The unit of regions is percent of the upright picture's width and height.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._detections import Detections
from ..._masks import MaskCrop
from ..._outlines import trace_polygons
from .brush import encode_brush
from .config import Control
from .polygons import simplify

TOLERANCE = 1.0  # pixels by which a polygon may differ from its mask
POINT_SIZE = 0.5  # size of a keypoint, in percent of the picture's width

MASK_KINDS = ("brushlabels", "polygonlabels")


def make_regions(
    found: Detections, controls: Sequence[Control], image_size_hw: tuple[int, int]
) -> list[dict[str, Any]]:
    """The regions of one picture, those of the best detection first.

    A mask of several parts becomes several polygons, without their holes. The keypoints of a detection have its
    rectangle as their parent, if there is one.

    Args:
        controls: the controls for this picture. A detection without a label in them is left out.
        image_size_hw: height and width of the upright picture in pixels.
    """
    kinds = {control.kind for control in controls}
    crops = list(found.mask_crops()) if kinds & set(MASK_KINDS) else [None] * len(found)
    made = []
    for row, crop in enumerate(crops):
        parents: dict[str, str] = {}
        for control in controls:
            if found.scores[row] <= control.score_thresh:
                continue
            for label, value in _values(found, row, crop, control, image_size_hw):
                region: dict[str, Any] = {
                    "id": uuid.uuid4().hex[:10],
                    "from_name": control.name,
                    "to_name": control.image,
                    "type": control.kind,
                    "original_width": image_size_hw[1],
                    "original_height": image_size_hw[0],
                    "image_rotation": 0,
                    "score": float(str(found.scores[row])),
                    "value": value | {control.kind: [label]},
                }
                if control.kind == "rectanglelabels":
                    parents.setdefault(control.image, region["id"])
                elif control.kind == "keypointlabels" and control.image in parents:
                    region["parentID"] = parents[control.image]
                made.append(region)
    return made


def _values(
    found: Detections, row: int, crop: MaskCrop | None, control: Control, image_size_hw: tuple[int, int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The regions of one detection for one control: for each its label, and its value without the label."""
    if control.kind == "keypointlabels":
        yield from _keypoints(found, row, control, image_size_hw)
    elif (label := control.labels.get(found.class_names[row])) is None:
        return
    elif control.kind == "rectanglelabels":
        (x1, y1), (x2, y2) = _percent(found.boxes[row].reshape(2, 2), image_size_hw)
        yield label, {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
    elif crop is not None and crop.mask.any():
        if control.kind == "brushlabels":
            yield label, {"format": "rle", "rle": encode_brush(crop, image_size_hw)}
            return
        for outline in trace_polygons(crop):
            points = simplify(outline, TOLERANCE)
            if len(points) >= 3:
                yield label, {"points": _percent(points, image_size_hw), "closed": True}


def _keypoints(
    found: Detections, row: int, control: Control, image_size_hw: tuple[int, int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    names, points, scores = found.keypoint_names, found.keypoints, found.keypoint_scores
    assert names is not None and points is not None and scores is not None
    places = _percent(points[row, :, :2], image_size_hw)
    for name, (x, y), score in zip(names, places, scores[row], strict=True):
        is_sure = control.point_thresh is None or score > control.point_thresh
        if is_sure and name in control.labels:
            yield control.labels[name], {"x": x, "y": y, "width": POINT_SIZE}


def _percent(points: NDArray[np.float32], image_size_hw: tuple[int, int]) -> list[list[float]]:
    """Points [n, 2] in pixels -> percent. Label Studio rejects all predictions of a request if one is above 100."""
    shares = 100 * points.astype(np.float64) / image_size_hw[::-1]
    return [[float(x), float(y)] for x, y in np.clip(shares, 0, 100)]
