"""COCO average precision of a torch detector; the metric itself is the client's, which needs no torch."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from rcnn_client.tools import coco_score
from rcnn_client.tools.coco_file import box_record
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from rcnn_export.train.coco_dataset import Sample


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
    scores = coco_score.score(images, categories, truth, found)
    return {
        "ap": scores.ap,
        "ap50": scores.ap50,
        "ap75": scores.ap75,
        "ap_per_class": {each.name: each.ap for each in scores.classes},
        "num_pictures": len(images),
    }


def _records(image_id: int, instances: dict[str, Tensor], extras: dict[str, str]) -> list[dict[str, Any]]:
    columns = {key: instances[name].tolist() for name, key in extras.items()}
    labels = instances["labels"].tolist()
    return [
        box_record(
            image_id, labels[position], box, **{key: column[position] for key, column in columns.items()}
        )
        for position, box in enumerate(instances["boxes"].tolist())
    ]
