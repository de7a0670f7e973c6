"""The boxes of a COCO instances file: reads their records, and checks that their format is COCO's. N boxes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .coco_file import Category, CocoImage, Records, is_number, listed, shown

LARGEST_PX = 1e9  # no picture is this large
LARGEST_NORMALISED = 1.5  # a box that is a little larger than its picture is still taken for normalised
BBOX = "expected left, top, width, height in pixels"


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes as they are annotated.

    Attributes:
        images, categories: int64 [N], positions in the lists of images and of categories.
        bbox: float64 [N, 4], left, top, width, height in pixels.
        areas: float64 [N], square pixels; the area of the box if none is given.
        is_crowd: bool [N].
        sizes: float64 [N, 2], width and height of each box's picture in pixels.
        records: objects [N], the annotations from which they are read.
        numbers: int64 [N], the positions of these annotations in the file.
    """

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    bbox: NDArray[np.float64]
    areas: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    sizes: NDArray[np.float64]
    records: NDArray[np.object_]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, kept: NDArray[np.bool_]) -> Boxes:
        """The boxes of a mask, bool [N]."""
        return Boxes(*(getattr(self, column.name)[kept] for column in fields(self)))

    def name(self, row: int) -> str:
        """The name of a box's annotation in errors."""
        return name_of(self.records[row], int(self.numbers[row]))

    def corners(self) -> NDArray[np.float64]:
        """The boxes as left, top, right, bottom: float64 [N, 4], pixels."""
        return np.concatenate((self.bbox[:, :2], self.bbox[:, :2] + self.bbox[:, 2:]), axis=1)

    def visible(self) -> NDArray[np.float64]:
        """Their parts inside their pictures, as left, top, right, bottom: float64 [N, 4], pixels."""
        return np.clip(self.corners(), 0, np.tile(self.sizes, 2))


def read_boxes(
    records: Records, images: Sequence[CocoImage], categories: Sequence[Category], path: Path
) -> Boxes:
    """Read the records under annotations.

    Raises:
        ValueError: a record lacks a field, or has one that cannot be used.
    """
    position_of = {image.id: position for position, image in enumerate(images)}
    category_of = {category.id: position for position, category in enumerate(categories)}
    faults: dict[str, list[str]] = defaultdict(list)
    rows: list[tuple[int, int, list[float], float, bool]] = []
    for number, record in enumerate(records):
        fault = _fault(record, position_of, category_of)
        if fault is not None:
            field, what = fault
            faults[what].append(f"{name_of(record, number)} has {shown(record.get(field))}")
        else:
            bbox, area = record["bbox"], record.get("area")
            area = float(bbox[2] * bbox[3] if area is None else area)
            position, category = position_of[record["image_id"]], category_of[record["category_id"]]
            rows.append((position, category, bbox, area, bool(record.get("iscrowd"))))
    raise_faults(faults, len(records), path)
    positions, labels, bboxes, areas, crowds = zip(*rows, strict=True)
    sizes = np.array([image.size for image in images], np.float64)
    return Boxes(
        np.array(positions, np.int64),
        np.array(labels, np.int64),
        np.array(bboxes, np.float64),
        np.array(areas, np.float64),
        np.array(crowds, np.bool_),
        sizes[list(positions)],
        np.fromiter(records, np.object_, len(records)),
        np.arange(len(records)),
    )


def without_copies(records: Records) -> tuple[Records, int]:
    """Drop repeated records: those with the same id, picture, category and box.

    Annotations that share only the id are all kept; no other record refers to them.

    Returns:
        the records that are left, and how many were dropped.
    """
    kept: dict[str, dict[str, Any]] = {}
    for number, record in enumerate(records):
        fields = [record.get(field) for field in ("id", "image_id", "category_id", "bbox")]
        has_id = record.get("id") is not None
        kept.setdefault(json.dumps(fields) if has_id else f"no id {number}", record)
    return list(kept.values()), len(records) - len(kept)


def name_of(record: dict[str, Any], number: int) -> str:
    """The name of the annotation at position `number` in errors."""
    return f"id {shown(record['id'])}" if record.get("id") is not None else f"annotations[{number}]"


def raise_faults(faults: Mapping[str, Sequence[str]], num_annotations: int, path: Path) -> None:
    """Raise a ValueError about the first of the faults, with the names of the annotations that have it."""
    for what, names in faults.items():
        raise ValueError(
            f"{path}: {len(names)} of {num_annotations} annotations have {what}: {listed(names)}"
        )


def check_format(boxes: Boxes, path: Path) -> None:
    """Check that the boxes are left, top, width, height in pixels of their pictures.

    Raises:
        ValueError: most look normalised, look like x1, y1, x2, y2, or lie outside their pictures.
    """
    sizes, first, second = boxes.sizes, boxes.bbox[:, :2], boxes.bbox[:, 2:]
    is_tiny = (np.abs(boxes.bbox) <= LARGEST_NORMALISED).all(axis=1) & (sizes > 4).all(axis=1)
    reaches_far = (first + second > 1.1 * sizes).any(axis=1)
    fits_as_corners = ((second > first) & (first >= -1) & (second <= sizes + 1)).all(axis=1)
    is_outside = ((first >= sizes) | (first + second <= 0)).any(axis=1)
    if _share(is_tiny) > 0.5:
        look, shows = "normalised to 0..1", is_tiny
    elif _share(reaches_far) > 0.2 and _share(fits_as_corners) > 0.9:
        look, shows = "like x1, y1, x2, y2", reaches_far & fits_as_corners
    elif _share(is_outside) > 0.5:
        look, shows = "like those of larger pictures", is_outside
    else:
        return
    bbox, (width, height) = boxes.bbox[shows][0].tolist(), sizes[shows][0]
    raise ValueError(
        f"{path}: the boxes look {look}, such as {bbox} in a picture of {width:.0f}x{height:.0f} px: {BBOX}"
    )


def _share(mask: NDArray[np.bool_]) -> float:
    return float(mask.mean()) if mask.size else 0.0


def _fault(
    record: dict[str, Any], images: Container[Any], categories: Container[Any]
) -> tuple[str, str] | None:
    """The field of a record that cannot be used, and what is wrong with it."""
    for field, known, part in (("image_id", images, "images"), ("category_id", categories, "categories")):
        value = record.get(field)
        if not isinstance(value, int | float | str) or value not in known:
            return field, f"{'an' if part == 'images' else 'a'} {field} that is not under {part}"
    bbox, area = record.get("bbox"), record.get("area")
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_pixels, bbox)) and min(bbox[2:]) >= 0):
        return "bbox", f"a bbox that cannot be used ({BBOX})"
    if area is not None and not (is_number(area) and area >= 0):
        return "area", "an area that is not a number of square pixels"
    if record.get("iscrowd") not in (None, 0, 1):
        return "iscrowd", "an iscrowd other than 0 and 1"
    return None


def _is_pixels(value: Any) -> bool:
    return is_number(value) and abs(value) < LARGEST_PX
