"""COCO's average precision of boxes and of masks, by pycocotools.

T IoU thresholds (0.50, 0.55 .. 0.95), R recalls (0, 0.01 .. 1), K classes, A areas (all, small, medium,
large), M limits of detections per picture (1, 10, 100).
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .coco_file import Records

Kind = Literal["bbox", "segm"]


@dataclass(frozen=True)
class ClassScore:
    """How well one class is found; average precision 0 to 1, or -1 where no box of it is annotated."""

    name: str
    num_boxes: int
    ap: float
    ap50: float
    ap75: float


@dataclass(frozen=True, eq=False)
class Scores:
    """COCO's box metrics; average precision 0 to 1, or -1 where nothing is annotated.

    Attributes:
        ap, ap50, ap75: averaged over IoU 0.50 to 0.95, and at IoU 0.50 and 0.75.
        ap_small, ap_medium, ap_large: of boxes below 32x32 px, of those from there to 96x96 px, and of the larger ones.
        classes: in the order of the categories.
        precision: [T, R, K], the highest precision at that recall or a higher one; -1 where the class has
            no box.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    classes: list[ClassScore]
    precision: NDArray[np.float64]


def score(
    images: Records, categories: Records, truth: Records, found: Records, kind: Kind = "bbox"
) -> Scores:
    """Compute COCO's metrics of boxes ("bbox") or of masks ("segm").

    Ids may be anything. Of equal scores, those of the first picture in `images` rank first.

    Args:
        images: `id`, of the pictures to score, and for masks their `height` and `width`.
        categories: `id` and `name`.
        truth: what is annotated in these pictures: `image_id`, `category_id`, `bbox` (left, top, width,
            height in pixels) and, where they are known, `area` and `iscrowd`.
        found: what was detected in them: `image_id`, `category_id`, `bbox` and `score`.
        kind: for masks, the records of `truth` and `found` need a `segmentation`, those of `found` as compressed RLE.
    """
    found = [_with_area(record, kind) for record in found]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and a table
        evaluation = COCOeval(_index(images, truth, categories), _index(images, found, categories), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [T, R, K, A, M] -> [T, R, K]
    classes = []
    for position, category in enumerate(categories):
        of_class = precision[:, :, position]
        num_boxes = sum(
            record["category_id"] == category["id"] and not record.get("iscrowd") for record in truth
        )
        aps = (_mean_where_annotated(part) for part in (of_class, of_class[0], of_class[5]))
        classes.append(ClassScore(str(category["name"]), num_boxes, *aps))
    ap, ap50, ap75, ap_small, ap_medium, ap_large = (float(value) for value in evaluation.stats[:6])
    return Scores(ap, ap50, ap75, ap_small, ap_medium, ap_large, classes, precision)


def _with_area(record: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """A detection with the area by which COCO calls it small or large: that of its mask or of its box."""
    return {**record, "area": float(rle.area(record["segmentation"]))} if kind == "segm" else record


def _index(images: Records, records: Records, categories: Records) -> COCO:
    """Index records under ids that count from 1, as pycocotools sorts ids and takes id 0 for "not matched"."""
    image_ids = {image["id"]: number for number, image in enumerate(images, start=1)}
    category_ids = {category["id"]: number for number, category in enumerate(categories, start=1)}
    coco = COCO()
    coco.dataset = {
        "images": [{**image, "id": image_ids[image["id"]]} for image in images],
        "categories": [{"id": number} for number in category_ids.values()],
        "annotations": [
            {
                "area": record["bbox"][2] * record["bbox"][3],
                "iscrowd": 0,
                **record,
                "id": number,
                "image_id": image_ids[record["image_id"]],
                "category_id": category_ids[record["category_id"]],
            }
            for number, record in enumerate(records, start=1)
        ],
    }
    coco.createIndex()
    return coco


def _mean_where_annotated(precision: NDArray[np.float64]) -> float:
    annotated = precision[precision > -1]
    return float(annotated.mean()) if annotated.size else -1.0
