"""Reads COCO instances files. Everything is checked before the first picture is used, by these rules.

rcnn-eval and rcnn-train both read through this module, so they score against the same boxes. N boxes.

- Left out, and counted in one line: boxes without width or height, boxes outside their picture, repeated
  annotations, unused categories.
- Kept as annotated: boxes that reach beyond their picture. They are scored as they are, as by pycocotools; training
  uses the part inside.
- If masks are read: annotations without a segmentation, with only polygons of fewer than three points, or whose mask
  covers no pixel of the picture are left out and counted. If a mask reaches beyond its picture, the part inside is
  kept.
- If keypoints are read: objects without labelled keypoints are kept, with visibilities of 0.
- Everything else that would change the meaning of the file is an error that names the first few records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .annotated_boxes import Boxes, check_format, read_boxes, without_copies
from .annotated_keypoints import read_keypoint_names, read_keypoints
from .annotated_masks import check_masks_fit, read_masks
from .coco_file import Category, CocoImage, Records, listed, read_categories, read_content, read_images
from .segmentations import MISSING, NO_PIXEL, TOO_FEW_POINTS, Rle

MIN_SIDE_PX = 0.01  # a smaller side may vanish in float32 when the picture is resized

Counted = tuple[int, str, str]
"""How many, and their name in the singular and in the plural."""

COPIES = ("repeated annotation", "repeated annotations")
NO_SIDES = ("box without width or height", "boxes without width or height")
OUTSIDE = ("box outside its picture", "boxes outside their pictures")
BEYOND = ("box that reaches beyond its picture", "boxes that reach beyond their pictures")


class NotAnnotatedError(ValueError):
    """No object of the file has what was asked for."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """A COCO instances file that has been checked. N boxes, P keypoints of each.

    Attributes:
        path: the file.
        images: in the order of their ids.
        categories: in the order of their ids, including unused ones.
        boxes: the N boxes that are scored.
        left_out: how many annotations are left out, for each reason.
        masks: the masks of the same N objects in their pictures, after `with_masks`.
        keypoints: float64 [N, P, 3], x and y in pixels and visibility 0, 1 or 2, after `with_keypoints`.
        keypoint_names: P names, after `with_keypoints`, if the categories list any.
    """

    path: Path
    images: list[CocoImage]
    categories: list[Category]
    boxes: Boxes
    left_out: list[Counted]
    masks: list[Rle] | None = None
    keypoints: NDArray[np.float64] | None = None
    keypoint_names: list[str] | None = None

    def with_masks(self) -> Annotations:
        """The same with masks, without the boxes that have none.

        Raises:
            NotAnnotatedError: none has one.
            ValueError: a segmentation cannot be used; the message names the first few.
        """
        read = read_masks(self.boxes, self.path)
        is_kept = np.array([isinstance(mask, dict) for mask in read], np.bool_)
        counts = [(read.count(reason), *reason) for reason in (MISSING, TOO_FEW_POINTS, NO_PIXEL)]
        masks = [mask for mask in read if isinstance(mask, dict)]
        boxes, left_out = self.boxes[is_kept], [*self.left_out, *counts]
        if boxes.is_crowd.all():
            raise NotAnnotatedError(
                f"{self.path} has no mask to train on or to compare with; {_why(left_out)}"
            )
        check_masks_fit(masks, boxes, self.path)
        keypoints = None if self.keypoints is None else self.keypoints[is_kept]
        return replace(self, boxes=boxes, left_out=left_out, masks=masks, keypoints=keypoints)

    def with_keypoints(self) -> Annotations:
        """The same with keypoints; boxes without labelled ones are kept.

        Raises:
            NotAnnotatedError: nothing is labelled.
            ValueError: keypoints cannot be used; the message names the first few.
        """
        keypoints = read_keypoints(self.boxes, self.path)
        if not (keypoints[~self.boxes.is_crowd, :, 2] > 0).any():
            raise NotAnnotatedError(f"{self.path} has no labelled keypoints to train on or to compare with")
        used = [category for category in self.categories if category.is_used]
        names = read_keypoint_names(used, keypoints.shape[1], self.path)
        return replace(self, keypoints=keypoints, keypoint_names=names)

    @property
    def num_keypoints(self) -> int:
        """P; 0 if keypoints were not read."""
        return 0 if self.keypoints is None else self.keypoints.shape[1]

    @property
    def summary(self) -> str:
        """A line for the user: how much there is, and what was left out."""
        boxes, num_used = self.boxes, sum(category.is_used for category in self.categories)
        shapes = " with masks" if self.masks is not None else ""
        if self.keypoints is not None:
            shapes += f" ({(self.keypoints[:, :, 2] > 0).any(axis=1).sum()} with keypoints)"
        num_beyond = int((np.abs(boxes.corners() - boxes.visible()) > 1).any(axis=1).sum())
        left_out = _listed([*self.left_out, *_unused(self.categories)])
        parts = [
            f"{self.path}: {len(self.images)} pictures, {len(boxes)} boxes{shapes}, {num_used} classes",
            f"left out: {left_out}" if left_out else "",
            f"kept: {_listed([(num_beyond, *BEYOND)])}" if num_beyond else "",
        ]
        return "; ".join(filter(None, parts))

    def records(self) -> Records:
        """The boxes as COCO's records: `image_id`, `category_id`, `bbox`, `area` and `iscrowd`.

        After `with_masks` also `segmentation`; after `with_keypoints` also `keypoints` and `num_keypoints`.
        """
        boxes = self.boxes
        columns = boxes.images, boxes.categories, boxes.bbox, boxes.areas, boxes.is_crowd
        records = [
            {
                "image_id": self.images[image].id,
                "category_id": self.categories[category].id,
                "bbox": bbox,
                "area": area,
                "iscrowd": int(is_crowd),
            }
            for image, category, bbox, area, is_crowd in zip(
                *(each.tolist() for each in columns), strict=True
            )
        ]
        if self.masks is not None:
            for record, mask in zip(records, self.masks, strict=True):
                record["segmentation"] = mask
        if self.keypoints is not None:
            for record, points in zip(records, self.keypoints, strict=True):
                record["keypoints"] = points.ravel().tolist()
                record["num_keypoints"] = int((points[:, 2] > 0).sum())
        return records


def read_annotations(path: Path) -> Annotations:
    """Read a COCO instances file. Its masks and keypoints are only read by `with_masks` and `with_keypoints`.

    Raises:
        ValueError: it cannot be used; the message names the file and the first few records that are wrong.
    """
    content = read_content(path)
    images, categories = read_images(content, path), read_categories(content, path)
    if not content.get("annotations"):
        lacks = "lists no annotations" if "annotations" in content else "has no annotations, like a test set"
        raise ValueError(f"{path} {lacks}: expected boxes to train on or to compare with")
    records, num_copies = without_copies(content["annotations"])
    boxes = read_boxes(records, images, categories, path)

    check_format(boxes[(boxes.bbox[:, 2:] > 0).all(axis=1)], path)
    has_sides = (boxes.bbox[:, 2:] >= MIN_SIDE_PX).all(axis=1)
    visible = boxes.visible()
    is_inside = (visible[:, 2:] - visible[:, :2] >= MIN_SIDE_PX).all(axis=1)
    left_out = [
        (num_copies, *COPIES),
        (int((~has_sides).sum()), *NO_SIDES),
        (int((has_sides & ~is_inside).sum()), *OUTSIDE),
    ]
    kept = boxes[has_sides & is_inside]
    if kept.is_crowd.all():
        why = _why([*left_out, *_unused(categories)])
        raise ValueError(f"{path} has no box to train on or to compare with; {why}")
    return Annotations(path, images, categories, kept, left_out)


def _unused(categories: Sequence[Category]) -> list[Counted]:
    names = [repr(category.name) for category in categories if not category.is_used]
    what = f"without annotations ({listed(names)})"
    return [(len(names), f"category {what}", f"categories {what}")]


def _why(left_out: Sequence[Counted]) -> str:
    """Why there is no box or mask."""
    text = _listed(left_out)
    return f"left out: {text}" if text else "all are crowds"


def _listed(kinds: Sequence[Counted]) -> str:
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in kinds if count)
