"""A COCO-format dataset of boxes, alone or with masks or keypoints, as a torch dataset, checked before training starts.

Categories may have any ids: label 1 is the category with the lowest id, and so on; label 0 is the background.
Boxes are left, top, right, bottom in pixels, whereas COCO files contain left, top, width, height.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as rle
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.decode import decode_image
from rcnn_client.tools.annotations import Annotations, read_annotations
from rcnn_client.tools.coco_score import Kind
from rcnn_client.tools.segmentations import Rle
from torch import Tensor
from torch.utils.data import Dataset

from rcnn_export.detector.load import default_keypoint_names
from rcnn_export.errors import ExportError

MAX_IMAGE_PIXELS = 10**9  # a file that claims more is damaged

Sample = tuple[Tensor, dict[str, Tensor]]
"""A picture, uint8 [3, H, W] in RGB, and its target with D boxes. For training: ``boxes`` float32 [D, 4], the parts
inside the picture, and ``labels`` int64 [D]. For scoring: ``bbox`` float64 [D, 4], left, top, width, height
as annotated, and ``area`` float64 [D] in square pixels. For both: ``iscrowd`` bool [D]. A Mask R-CNN also has ``masks``,
uint8 [D, H, W], 1 inside the object. A Keypoint R-CNN also has ``keypoints``, float32 [D, P, 3]: x and y in pixels, and
visibility, 0 for not labelled, 1 for hidden, 2 for visible."""


class CocoDataset(Dataset[Sample]):
    """The pictures and boxes of one COCO instances file. Pictures and masks are decoded when they are read.

    Attributes:
        class_names: the categories' names, without the background.
        keypoint_names: the names of the P keypoints, if ``annotations`` was read with them; COCO's names or numbers if
            the file names none.
    """

    def __init__(
        self, annotations: Path | Annotations, pictures: Path, class_names: Sequence[str] | None = None
    ) -> None:
        """Takes ``annotations``, a file or its content, whose file names are relative to ``pictures``.

        Targets have masks or keypoints if ``annotations`` was read with them.

        Args:
            class_names: the names of the labels from 1 on, which are the ``used_names`` of all files of a run; by default
                the names of all categories.

        Raises:
            ExportError: a file is missing or an annotation cannot be used; the message names it.
        """
        if isinstance(annotations, Path):
            annotations = read(annotations)
        self._paths = [pictures / image.file_name for image in annotations.images]
        self._sizes = [image.size for image in annotations.images]
        missing = [path for path in self._paths if not path.is_file()]
        if missing:
            raise ExportError(
                f"{len(missing)} of {len(self._paths)} pictures in {annotations.path} are missing, the first is "
                f"{missing[0]}: give the folder that its file names are relative to"
            )
        self.class_names = list(class_names or dict.fromkeys(each.name for each in annotations.categories))
        self.keypoint_names = annotations.keypoint_names or default_keypoint_names(annotations.num_keypoints)
        rows = _rows_by_picture(annotations)
        self._targets = _targets(annotations, rows, self.class_names)
        masks = annotations.masks
        self._masks = None if masks is None else [[masks[row] for row in of_picture] for of_picture in rows]

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
        target = self._targets[index]
        if self._masks is not None:
            target = {**target, "masks": _decoded(self._masks[index], *pixels.shape[:2])}
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1), target


def read(path: Path, kind: Kind = "bbox") -> Annotations:
    """Reads a COCO instances file, with masks if ``kind`` is ``segm`` or keypoints if it is ``keypoints``.

    Raises:
        ExportError: it cannot be used; the message names the file and the first few records that are wrong.
    """
    try:
        annotations = read_annotations(path)
        if kind == "segm":
            return annotations.with_masks()
        return annotations.with_keypoints() if kind == "keypoints" else annotations
    except ValueError as error:
        raise ExportError(str(error)) from error


def used_names(*files: Annotations) -> list[str]:
    """The classes of a detector: the categories of the first file that any of the files uses, in the first file's order.

    Files are matched by the names of their categories, so ids may differ.

    Raises:
        ExportError: a file uses a category that the first does not list.
    """
    used = {category.name for file in files for category in file.categories if category.is_used}
    listed = dict.fromkeys(category.name for category in files[0].categories)
    for file in files[1:]:
        unknown = [each.name for each in file.categories if each.is_used and each.name not in listed]
        if unknown:
            raise ExportError(
                f"{file.path} has boxes of {', '.join(map(repr, unknown))}, which is not among the categories of "
                f"{files[0].path}: {', '.join(map(repr, listed))}. Give both files the same names"
            )
    return [name for name in listed if name in used]


def check_same_keypoints(first: Annotations, *others: Annotations) -> None:
    """Checks that files have the same number of keypoints, and the same names if they name them.

    Raises:
        ExportError: a file has other keypoints than the first.
    """
    for file in others:
        if file.num_keypoints != first.num_keypoints:
            raise ExportError(
                f"{file.path} has {file.num_keypoints} keypoints for each object, and {first.path} has "
                f"{first.num_keypoints}. Give both files the same keypoints"
            )
        if file.keypoint_names and first.keypoint_names and file.keypoint_names != first.keypoint_names:
            raise ExportError(
                f"{file.path} names the keypoints {', '.join(file.keypoint_names)}, and {first.path} "
                f"{', '.join(first.keypoint_names)}. Give both files the same, in the same order"
            )


def to_target(
    boxes: ArrayLike, labels: ArrayLike, areas: ArrayLike, is_crowd: ArrayLike, bbox: ArrayLike | None = None
) -> dict[str, Tensor]:
    """The target of a picture.

    Args:
        boxes: [D, 4], left, top, right, bottom in pixels, inside the picture.
        labels: [D], from 1 on.
        areas: [D], square pixels.
        is_crowd: [D].
        bbox: [D, 4], left, top, width, height in pixels, as annotated; by default those of ``boxes``.
    """
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    if bbox is None:
        bbox = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1)
    return {
        "boxes": torch.from_numpy(corners.astype(np.float32)),
        "labels": torch.from_numpy(np.array(labels, np.int64)),
        "bbox": torch.from_numpy(np.array(bbox, np.float64)),
        "area": torch.from_numpy(np.array(areas, np.float64)),
        "iscrowd": torch.from_numpy(np.array(is_crowd, np.bool_)),
    }


def _rows_by_picture(annotations: Annotations) -> list[NDArray[np.int64]]:
    """The positions of each picture's boxes among all boxes of the file."""
    images = annotations.boxes.images
    order = np.argsort(images, kind="stable")
    return np.split(order, np.searchsorted(images[order], np.arange(1, len(annotations.images))))


def _targets(
    annotations: Annotations, rows: Sequence[NDArray[np.int64]], class_names: Sequence[str]
) -> list[dict[str, Tensor]]:
    """The target of each picture, without masks."""
    boxes, corners = annotations.boxes, annotations.boxes.visible()
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    labels = np.array([label_of.get(category.name, 0) for category in annotations.categories])[
        boxes.categories
    ]
    targets = [
        to_target(corners[each], labels[each], boxes.areas[each], boxes.is_crowd[each], boxes.bbox[each])
        for each in rows
    ]
    if (keypoints := annotations.keypoints) is not None:
        for target, of_picture in zip(targets, rows, strict=True):
            target["keypoints"] = torch.from_numpy(keypoints[of_picture].astype(np.float32))
    return targets


def _decoded(masks: list[Rle], height: int, width: int) -> Tensor:
    """uint8 [D, H, W]."""
    if not masks:
        return torch.zeros((0, height, width), dtype=torch.uint8)
    return torch.from_numpy(rle.decode(masks)).permute(2, 0, 1).contiguous()  # [H, W, D] -> [D, H, W]
