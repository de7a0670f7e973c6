"""COCO average precision of a torch detector's boxes, masks and keypoints. The client, without torch, computes the metric."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from rcnn_client.tools import coco_score
from rcnn_client.tools.arguments import SCORE_THRESH
from rcnn_client.tools.coco_file import box_record
from rcnn_client.tools.coco_score import Kind
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from rcnn_export.train.coco_dataset import Sample

PREFIXES: dict[Kind, str] = {"bbox": "", "segm": "segm_", "keypoints": "keypoints_"}  # of the metrics' names
MASK_THRESH = (
    0.5  # a pixel with a probability above this belongs to the object, as in torchvision's reference
)


@dataclass
class Detected:
    """Pictures, their annotations and their detections, as COCO's records."""

    images: list[dict[str, Any]] = field(default_factory=list)
    truth: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)


def kind_of(model: FasterRCNN) -> Kind:
    """What a detector finds in addition to boxes, by its heads; ``bbox`` if nothing."""
    heads = model.roi_heads
    return "segm" if heads.has_mask() else "keypoints" if heads.has_keypoint() else "bbox"


@torch.inference_mode()
def detect(
    model: FasterRCNN, samples: Iterable[tuple[int, Sample]], score_thresh: float = SCORE_THRESH
) -> Detected:
    """Runs ``model``, in FP32 on its current device, over samples and their image ids; leaves it in eval mode.

    Pictures are processed one by one. In a batch, torchvision pads them to the size of the largest, which changes the
    detections. The server only batches pictures that are padded to the same size.

    Args:
        score_thresh: detections with a score above this are kept; by default rcnn-eval's threshold.
    """
    device = next(model.parameters()).device
    model.eval()
    heads, own_thresh = model.roi_heads, model.roi_heads.score_thresh
    detected = Detected()
    heads.score_thresh = score_thresh
    try:
        for image_id, (pixels, target) in samples:
            (detections,) = model([pixels.to(device, non_blocking=True).float() / 255])
            height, width = pixels.shape[1:]
            detected.images.append({"id": image_id, "height": height, "width": width})
            detected.truth += truth_records(image_id, target)
            detected.found += found_records(image_id, detections)
    finally:
        heads.score_thresh = own_thresh
    return detected


def score(parts: list[Detected], class_names: list[str], kind: Kind = "bbox") -> dict[str, Any]:
    """Joins the ``parts`` of a dataset and computes COCO's metrics.

    Args:
        parts: the detections, in one part or several; image ids are unique over all parts, and the order of the parts
            decides between equal scores.
        class_names: the names of the labels from 1 on.
        kind: what is scored in addition to the boxes.

    Returns:
        ``num_pictures``; for the boxes ``ap`` (AP50:95), ``ap50``, ``ap75``, all in 0..1 and -1 if nothing is
        annotated, and ``ap_per_class`` by class name; for masks or keypoints the same, as ``segm_ap`` or
        ``keypoints_ap`` and so on.
    """
    images = sorted((image for part in parts for image in part.images), key=lambda image: image["id"])
    truth = [record for part in parts for record in part.truth]
    found = [record for part in parts for record in part.found]
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names, start=1)]
    metrics: dict[str, Any] = {}
    for each_kind in dict.fromkeys(("bbox", kind)):
        scores, prefix = coco_score.score(images, categories, truth, found, each_kind), PREFIXES[each_kind]
        metrics |= {
            f"{prefix}ap": scores.ap,
            f"{prefix}ap50": scores.ap50,
            f"{prefix}ap75": scores.ap75,
            f"{prefix}ap_per_class": {each.name: each.ap for each in scores.classes},
        }
    return {**metrics, "num_pictures": len(images)}


def truth_records(image_id: int, target: dict[str, Tensor]) -> list[dict[str, Any]]:
    """COCO's records of a picture's annotations."""
    columns = (target[name].tolist() for name in ("labels", "bbox", "area", "iscrowd"))
    records = [
        {"image_id": image_id, "category_id": label, "bbox": bbox, "area": area, "iscrowd": int(is_crowd)}
        for label, bbox, area, is_crowd in zip(*columns, strict=True)
    ]
    if "masks" in target:
        return _with_masks(records, target["masks"])
    return _with_keypoints(records, target["keypoints"]) if "keypoints" in target else records


def found_records(image_id: int, detections: dict[str, Tensor]) -> list[dict[str, Any]]:
    """COCO's records of torchvision's detections in a picture."""
    columns = (detections[name].tolist() for name in ("labels", "boxes", "scores"))
    records = [
        box_record(image_id, label, box, score=score) for label, box, score in zip(*columns, strict=True)
    ]
    if "masks" in detections:
        return _with_masks(records, detections["masks"][:, 0] > MASK_THRESH)  # [D, 1, H, W] -> [D, H, W]
    return _with_keypoints(records, detections["keypoints"]) if "keypoints" in detections else records


def _with_keypoints(records: list[dict[str, Any]], keypoints: Tensor) -> list[dict[str, Any]]:
    """The records with their ``keypoints``, [D, P, 3]: x, y, visibility of each."""
    return [
        {**record, "keypoints": values, "num_keypoints": count}
        for record, values, count in zip(
            records, keypoints.flatten(1).tolist(), (keypoints[..., 2] > 0).sum(1).tolist(), strict=True
        )
    ]


def _with_masks(records: list[dict[str, Any]], masks: Tensor) -> list[dict[str, Any]]:
    """The records with their ``masks``, bool or uint8 [D, H, W], as COCO's compressed RLE."""
    by_column = np.asfortranarray(masks.to("cpu", torch.uint8).permute(1, 2, 0).numpy())  # [H, W, D]
    return [
        {**record, "segmentation": segmentation}
        for record, segmentation in zip(records, rle.encode(by_column), strict=True)
    ]
