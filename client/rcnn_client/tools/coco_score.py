"""COCO's average precision of boxes, masks and keypoints, by pycocotools.

T IoU thresholds (0.50, 0.55 .. 0.95), R recalls (0, 0.01 .. 1), K classes, A areas (all, small, medium,
large), M limits of detections per picture (1, 10, 100; for keypoints 20), P keypoints per detection.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .coco_file import Records

Kind = Literal["bbox", "segm", "keypoints"]  # pycocotools' names: what the IoU is of
OTHER_SIGMA = 0.05  # of each keypoint if they are not COCO's 17, which have their own sigmas


@dataclass(frozen=True)
class ClassScore:
    """How well one class is found; average precision 0 to 1, or -1 if no box of the class is annotated.

    `num_boxes` counts the annotated boxes without crowds; for keypoints, only boxes with labelled keypoints.
    """

    name: str
    num_boxes: int
    ap: float
    ap50: float
    ap75: float


@dataclass(frozen=True, eq=False)
class Scores:
    """COCO's metrics; average precision 0 to 1, or -1 where nothing is annotated.

    Attributes:
        ap, ap50, ap75: averaged over IoU 0.50 to 0.95, and at IoU 0.50 and 0.75.
        ap_small, ap_medium, ap_large: of objects below 32x32 px, from 32x32 to 96x96 px, and of larger ones. COCO
            does not measure keypoints of small objects: -1.
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
    """Compute COCO's metrics of boxes, of masks ("segm") or of keypoints.

    Ids may be anything. Among equal scores, those of the first picture in `images` rank first.

    Args:
        images: `id`, of the pictures to score; for masks also `width` and `height`.
        categories: `id` and `name`.
        truth: the annotations of these pictures: `image_id`, `category_id`, `bbox` (left, top, width,
            height in pixels) and, where they are known, `area` and `iscrowd`. For masks also `segmentation`; for
            keypoints `keypoints` and `num_keypoints`: a record without them is not scored.
        found: the detections in them: `image_id`, `category_id`, `bbox`, `score`, and the field that `kind` compares.
    """
    found = [{**record, "area": _area(record, kind)} for record in found]
    num_points = max((len(record.get("keypoints", ())) // 3 for record in truth), default=0)
    if kind == "keypoints":
        unlabelled = {"keypoints": [0] * 3 * num_points, "num_keypoints": 0}
        truth = [{**unlabelled, **record} for record in truth]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and a table
        evaluation = COCOeval(_index(images, truth, categories), _index(images, found, categories), kind)
        if kind == "keypoints" and num_points != len(evaluation.params.kpt_oks_sigmas):
            evaluation.params.kpt_oks_sigmas = np.full(num_points, OTHER_SIGMA)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [T, R, K, A, M] -> [T, R, K]
    classes = []
    for position, category in enumerate(categories):
        of_class = precision[:, :, position]
        num_boxes = sum(
            record["category_id"] == category["id"]
            and not record.get("iscrowd")
            and (kind != "keypoints" or record["num_keypoints"] > 0)
            for record in truth
        )
        aps = (_mean_where_annotated(part) for part in (of_class, of_class[0], of_class[5]))
        classes.append(ClassScore(str(category["name"]), num_boxes, *aps))
    stats = [float(value) for value in evaluation.stats]
    ap, ap50, ap75, ap_small, ap_medium, ap_large = (
        [*stats[:3], -1.0, *stats[3:5]] if kind == "keypoints" else stats[:6]
    )
    return Scores(ap, ap50, ap75, ap_small, ap_medium, ap_large, classes, precision)


def _area(found: dict[str, Any], kind: Kind) -> float:
    """The area of a detection in square pixels, as pycocotools computes it for results of this kind."""
    if kind == "segm":
        return float(mask.area(found["segmentation"]))
    if kind == "keypoints":
        x, y = found["keypoints"][0::3], found["keypoints"][1::3]
        return float((max(x) - min(x)) * (max(y) - min(y)))
    return float(found["bbox"][2] * found["bbox"][3])


def _index(images: Records, records: Records, categories: Records) -> COCO:
    """Index records under ids that count from 1, because pycocotools sorts ids and uses id 0 for "not matched"."""
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
