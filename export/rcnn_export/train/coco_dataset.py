"""A COCO-format dataset of boxes as a torch dataset, checked before training starts.

Categories may have any ids: label 1 is the category of the lowest id, and so on; label 0 is the
background. Boxes are left, top, right, bottom in pixels, where COCO's files hold left, top, width, height.
"""

import math
from pathlib import Path
from typing import Any

import torch
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.decode import decode_image
from rcnn_client.tools.coco_file import read_instances
from torch import Tensor
from torch.utils.data import Dataset

from rcnn_export.errors import ExportError

MAX_IMAGE_PIXELS = 10**9  # a file that claims more is damaged

Sample = tuple[Tensor, dict[str, Tensor]]
"""A picture, uint8 [3, H, W] in RGB, and its target: ``boxes`` float32 [D, 4], ``labels`` int64 [D], ``area``
float32 [D] in square pixels, ``iscrowd`` bool [D]."""


class CocoDataset(Dataset[Sample]):
    """The pictures and boxes of one COCO instances file. Pictures are decoded as they are served.

    Attributes:
        class_names: the categories' names, without the background.
        num_skipped: boxes of no width or no height, which are left out.
    """

    def __init__(self, annotations: Path, pictures: Path) -> None:
        """Reads the file ``annotations``, whose file names are relative to the folder ``pictures``.

        Raises:
            ExportError: a file is missing or an annotation cannot be used; the message names it.
        """
        try:
            content = read_instances(annotations)
        except ValueError as error:
            raise ExportError(str(error)) from error
        try:
            categories = sorted(content["categories"], key=lambda category: category["id"])
            self.class_names = [str(category["name"]) for category in categories]
            label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
            entries = sorted(content["images"], key=lambda entry: entry["id"])
            self._paths = [pictures / entry["file_name"] for entry in entries]
            self._sizes = [(int(entry["width"]), int(entry["height"])) for entry in entries]
            position_of = {entry["id"]: position for position, entry in enumerate(entries)}
            instances: list[list[dict[str, Any]]] = [[] for _ in entries]
            self.num_skipped = 0
            for annotation in content["annotations"]:
                position = position_of.get(annotation["image_id"])
                size = None if position is None else self._sizes[position]
                instance = _to_instance(annotation, label_of, size, annotations)
                if instance is None:
                    self.num_skipped += 1
                elif position is not None:
                    instances[position].append(instance)
        except (KeyError, TypeError) as error:
            raise ExportError(
                f"{annotations} is not in COCO's instances format ({type(error).__name__}: {error}): "
                "expected images with id, file_name, width and height; annotations with image_id, "
                "category_id and bbox; categories with id and name"
            ) from error
        if not entries or not categories:
            raise ExportError(f"{annotations} lists no {'categories' if entries else 'images'}")
        missing = [path for path in self._paths if not path.is_file()]
        if missing:
            raise ExportError(
                f"{len(missing)} of {len(entries)} pictures in {annotations} are missing, the first is "
                f"{missing[0]}: give the folder that its file names are relative to"
            )
        self._targets = [to_target(found) for found in instances]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        path, expected_size = self._paths[index], self._sizes[index]
        try:
            pixels = decode_image(path.read_bytes(), MAX_IMAGE_PIXELS)
        except (OSError, InvalidInputError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ExportError(f"cannot read the picture {path}: {reason}") from error
        size = pixels.shape[1], pixels.shape[0]
        if size != expected_size:
            raise ExportError(
                f"{path} is {size} px (width, height), but its annotation says {expected_size}: "
                "the boxes belong to another version of the picture"
            )
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1), self._targets[index]


def to_target(instances: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Collects instances (``box``, ``label``, ``area``, ``iscrowd``) of one picture into tensors."""
    return {
        "boxes": torch.tensor([each["box"] for each in instances], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([each["label"] for each in instances], dtype=torch.int64),
        "area": torch.tensor([each["area"] for each in instances], dtype=torch.float32),
        "iscrowd": torch.tensor([each["iscrowd"] for each in instances], dtype=torch.bool),
    }


def _to_instance(
    annotation: dict[str, Any], label_of: dict[int, int], size: tuple[int, int] | None, path: Path
) -> dict[str, Any] | None:
    """One checked annotation, its box clipped to the picture; None if the box is empty."""
    name = f"annotation {annotation.get('id', '?')} in {path}"
    if size is None:
        raise ExportError(f"{name} belongs to picture {annotation['image_id']}, which is not under images")
    if annotation["category_id"] not in label_of:
        raise ExportError(
            f"{name} has the category {annotation['category_id']}, which is not under categories: "
            f"{sorted(label_of)}"
        )
    bbox = annotation["bbox"]
    if len(bbox) != 4 or not all(math.isfinite(value) for value in bbox) or min(bbox[2:]) < 0:
        raise ExportError(f"{name} has the bbox {bbox}: expected left, top, width, height in pixels")
    left, top, width, height = (float(value) for value in bbox)
    if not (0 <= left + width / 2 <= size[0] and 0 <= top + height / 2 <= size[1]):
        raise ExportError(
            f"{name} has the bbox {bbox}, whose centre lies outside its picture of {size[0]}x{size[1]} px: "
            "expected left, top, width, height (not right and bottom) in pixels"
        )
    box = (max(left, 0.0), max(top, 0.0), min(left + width, size[0]), min(top + height, size[1]))
    if box[2] <= box[0] or box[3] <= box[1]:
        return None
    return {
        "box": box,
        "label": label_of[annotation["category_id"]],
        "area": float(annotation.get("area", width * height)),
        "iscrowd": bool(annotation.get("iscrowd", 0)),
    }
