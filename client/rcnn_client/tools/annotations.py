"""Reads COCO instances files. Everything is checked before the first picture is run; each oddity has one rule.

rcnn-eval and rcnn-train both read through this module, so they score against the same boxes. N boxes.

- Left out, and counted in one line: boxes of no width or height, boxes outside their picture, annotations that
  are there twice, categories that nothing uses.
- Kept as annotated: boxes that reach beyond their picture. They are scored so, as by pycocotools; training
  takes the part inside.
- Where masks are read, too: annotations without a segmentation, with polygons of fewer than three points only, or
  whose mask covers no pixel of the picture are left out and counted. Of a mask that reaches beyond its picture, the
  part inside is kept.
- Where keypoints are read, too: an annotation may have none, and its box is kept. Any that cannot be used is an error.
- An error that names the first few records: everything else that would change what the file means.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .annotated_boxes import Boxes, check_format, read_boxes, without_copies
from .annotated_keypoints import check_keypoints, count_labelled, read_keypoint_names
from .annotated_masks import Rle, check_masks_fit, counts_of, read_masks
from .annotated_shapes import Segmentation, num_keypoints, read_keypoints, read_segmentation
from .coco_file import Category, CocoImage, Records, listed, read_categories, read_content, read_images

MIN_SIDE_PX = 0.01  # in float32, less may vanish when the picture is resized

BEYOND = ("box that reaches beyond its picture", "boxes that reach beyond their pictures")


@dataclass(frozen=True, eq=False)
class Annotations:
    """A COCO instances file that has been checked.

    Attributes:
        path: the file.
        images: in the order of their ids.
        categories: in the order of their ids, with those that nothing uses.
        boxes: the N boxes that are scored.
        masks: the masks of the same N objects in their pictures, where they were asked for.
        summary: a line for the user: how much there is, and what was left out.
        num_keypoints: P, of each object that has any; 0 where they were not asked for.
        keypoint_names: P names, where the categories list any and they were asked for.
    """

    path: Path
    images: list[CocoImage]
    categories: list[Category]
    boxes: Boxes
    summary: str
    masks: list[Rle] | None = None
    num_keypoints: int = 0
    keypoint_names: list[str] | None = None

    @cached_property
    def segmentations(self) -> list[Segmentation | None]:
        """The mask of each box: one of `masks`, or else as it is annotated, and None where it cannot be used."""
        if self.masks is not None:
            return list(self.masks)
        sizes = self.boxes.sizes.astype(int).tolist()
        return [
            read_segmentation(record, (width, height))
            for record, (width, height) in zip(self.boxes.records, sizes, strict=True)
        ]

    @cached_property
    def keypoints(self) -> list[list[float] | None]:
        """The keypoints of each box, x1, y1, v1, x2, ...; None where there are none that can be used."""
        return [read_keypoints(record) for record in self.boxes.records]

    def records(self) -> Records:
        """The boxes as COCO's records: `image_id`, `category_id`, `bbox`, `area` and `iscrowd`.

        Where they are annotated, also `segmentation`, and `keypoints` and `num_keypoints`.
        """
        boxes = self.boxes
        columns = boxes.images, boxes.categories, boxes.bbox, boxes.areas, boxes.is_crowd
        return [
            {
                "image_id": self.images[image].id,
                "category_id": self.categories[category].id,
                "bbox": bbox,
                "area": area,
                "iscrowd": int(is_crowd),
                **({} if segmentation is None else {"segmentation": segmentation}),
                **({} if points is None else {"keypoints": points, "num_keypoints": num_keypoints(points)}),
            }
            for image, category, bbox, area, is_crowd, segmentation, points in zip(
                *(each.tolist() for each in columns), self.segmentations, self.keypoints, strict=True
            )
        ]

    def why_no_masks(self) -> str | None:
        """Why masks cannot be scored: some boxes have none, or none that can be used. None if they can."""
        count, lacking = len(self.segmentations), sum(each is None for each in self.segmentations)
        return f"{lacking} of {count} boxes have no segmentation that can be used" if lacking else None

    def why_no_keypoints(self, num_expected: int) -> str | None:
        """Why `num_expected` keypoints cannot be scored. None if they can; boxes without keypoints are ignored."""
        numbers = {len(each) // 3 for each in self.keypoints if each is not None}
        if not numbers:
            return "no box has keypoints that can be used"
        if numbers != {num_expected}:
            found = " and ".join(map(str, sorted(numbers)))
            return f"the model answers {num_expected} keypoints, and {found} are annotated"
        return None


def read_annotations(path: Path, with_masks: bool = False, with_keypoints: bool = False) -> Annotations:
    """Read a COCO instances file.

    Args:
        with_masks: the masks are needed: segmentations are checked, too, and boxes without a mask are left out.
            Otherwise they are only looked at when they are asked for, and one that cannot be used is none.
        with_keypoints: the same for keypoints, except that boxes without any are kept.

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
    is_kept = has_sides & is_inside
    masks, masks_left_out = None, []
    if with_masks:
        read = read_masks(records, boxes.sizes, path)
        masks_left_out = counts_of(read[row] for row in np.flatnonzero(is_kept))
        is_kept &= [isinstance(mask, dict) for mask in read]
        masks = [
            mask for mask, is_one in zip(read, is_kept, strict=True) if is_one and isinstance(mask, dict)
        ]
        check_masks_fit(masks, visible[is_kept], path)
    kept = boxes[is_kept]
    unused = [repr(category.name) for category in categories if not category.is_used]
    left_out = _counted(
        (num_copies, "annotation that is there twice", "annotations that are there twice"),
        (int((~has_sides).sum()), "box of no width or height", "boxes of no width or height"),
        (int((has_sides & ~is_inside).sum()), "box outside its picture", "boxes outside their pictures"),
        *masks_left_out,
        (
            len(unused),
            f"category that nothing uses ({listed(unused)})",
            f"categories that nothing uses ({listed(unused)})",
        ),
    )
    if kept.is_crowd.all():
        why = f"left out: {left_out}" if left_out else "all are crowds"
        what = "mask" if with_masks else "box"
        raise ValueError(f"{path} has no {what} to train on or to compare with; {why}")
    num_beyond = int((np.abs(kept.corners() - kept.visible()) > 1).any(axis=1).sum())
    with_what = " with masks" if with_masks else ""
    num_points, point_names = 0, None
    if with_keypoints:
        num_points = check_keypoints(records, path)
        with_what = f" ({count_labelled(kept[~kept.is_crowd], path)} with keypoints)"
        used = {category.id for category in categories if category.is_used}
        listing = [record for record in content["categories"] if record["id"] in used]
        point_names = read_keypoint_names(listing, num_points, path)
    parts = [
        f"{path}: {len(images)} pictures, {len(kept.bbox)} boxes{with_what}, {len(categories) - len(unused)} classes",
        f"left out: {left_out}" if left_out else "",
        f"kept: {_counted((num_beyond, *BEYOND))}" if num_beyond else "",
    ]
    summary = "; ".join(filter(None, parts))
    return Annotations(path, images, categories, kept, summary, masks, num_points, point_names)


def _counted(*kinds: tuple[int, str, str]) -> str:
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in kinds if count)
