"""COCO average precision of a detector, by pycocotools."""

import contextlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from rcnn_export.coco_dataset import Sample


@dataclass
class Detected:
    """Pictures, what is annotated in them and what was found, as COCO's records; image ids count from 0."""

    images: list[dict[str, Any]] = field(default_factory=list)
    truth: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)


@torch.inference_mode()
def detect(model: FasterRCNN, batches: Iterable[list[Sample]]) -> Detected:
    """Runs ``model``, in FP32 on the device it is on, over lists of samples; leaves it in eval mode."""
    device = next(model.parameters()).device
    model.eval()
    detected = Detected()
    for batch in batches:
        pictures = [picture.to(device, non_blocking=True).float() / 255 for picture, _ in batch]
        for (picture, target), detections in zip(batch, model(pictures), strict=True):
            image_id = len(detected.images)
            detected.images.append({"id": image_id, "height": picture.shape[1], "width": picture.shape[2]})
            detected.truth += _records(image_id, target, {"area": "area", "iscrowd": "iscrowd"})
            detected.found += _records(image_id, detections, {"scores": "score"})
    return detected


def score(parts: list[Detected], class_names: list[str]) -> dict[str, Any]:
    """Joins the ``parts`` of a dataset and computes COCO's box metrics.

    Args:
        parts: what was detected, in one part or several.
        class_names: the names of the labels from 1 on.

    Returns:
        ``ap`` (AP50:95), ``ap50``, ``ap75``, all in 0..1 and -1 where nothing is annotated, ``ap_per_class``
        by class name, and ``num_pictures``.
    """
    images: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for part in parts:
        first_id = len(images)
        images += [{**image, "id": first_id + image["id"]} for image in part.images]
        truth += [{**record, "image_id": first_id + record["image_id"]} for record in part.truth]
        found += [{**record, "image_id": first_id + record["image_id"]} for record in part.found]
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress and a table
        evaluation = COCOeval(_index(images, truth, categories), _index(images, found, categories), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # precision: [IoU thresholds, recalls, classes, areas, max detections], -1 where a class has no box
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return {
        "ap": float(evaluation.stats[0]),
        "ap50": float(evaluation.stats[1]),
        "ap75": float(evaluation.stats[2]),
        "ap_per_class": {
            name: _mean_where_annotated(precision[:, :, position])
            for position, name in enumerate(class_names)
        },
        "num_pictures": len(images),
    }


def _records(image_id: int, instances: dict[str, Tensor], extras: dict[str, str]) -> list[dict[str, Any]]:
    columns = {key: instances[name].tolist() for name, key in extras.items()}
    labels = instances["labels"].tolist()
    return [
        {
            "image_id": image_id,
            "category_id": labels[position],
            "bbox": [left, top, right - left, bottom - top],
            **{key: column[position] for key, column in columns.items()},
        }
        for position, (left, top, right, bottom) in enumerate(instances["boxes"].tolist())
    ]


def _index(
    images: list[dict[str, Any]], records: list[dict[str, Any]], categories: list[dict[str, Any]]
) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": images,
        "categories": categories,
        "annotations": [
            {"area": record["bbox"][2] * record["bbox"][3], "iscrowd": 0, **record, "id": number}
            for number, record in enumerate(records, start=1)  # 0 would mean "not matched" to pycocotools
        ],
    }
    coco.createIndex()
    return coco


def _mean_where_annotated(precision: np.ndarray) -> float:
    annotated = precision[precision > -1]
    return float(annotated.mean()) if annotated.size else -1.0
