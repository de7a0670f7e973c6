"""The composed digits as a torch dataset, and as a COCO-format folder.

``python -m rcnn_export.digits.dataset FOLDER --split held-out --count 500`` writes ``annotations.json`` and
the pictures as JPEG into FOLDER.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from rcnn_client.tools.coco_score import Kind
from rich.progress import track
from torch.utils.data import Dataset

from rcnn_export.digits.compose import CLASS_NAMES, SPLITS, DigitPicture, compose_picture
from rcnn_export.digits.keypoints import KEYPOINT_NAMES, SKELETON
from rcnn_export.train.coco_dataset import Sample, to_target

JPEG_QUALITY = 95


class DigitsDataset(Dataset[Sample]):
    """The first ``num_pictures`` pictures of a split, composed when they are read.

    Targets also have the masks or the keypoints of the digits if ``kind`` is ``segm`` or ``keypoints``.
    """

    def __init__(self, split: str, num_pictures: int, kind: Kind = "bbox") -> None:
        self.class_names = list(CLASS_NAMES)
        self.keypoint_names = list(KEYPOINT_NAMES) if kind == "keypoints" else []
        self._split = split
        self._num_pictures = num_pictures
        self._kind = kind

    def __len__(self) -> int:
        return self._num_pictures

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._num_pictures:
            raise IndexError(f"picture {index} of {self._num_pictures}")
        picture = compose_picture(self._split, index)
        areas = [mask.sum() for mask in picture.masks]
        target = to_target(picture.boxes, picture.labels, areas, [False] * len(areas))
        if self._kind == "segm":
            target["masks"] = torch.from_numpy(picture.masks.astype(np.uint8))
        if self._kind == "keypoints":
            target["keypoints"] = torch.from_numpy(picture.keypoints)
        return torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1), target


def write_coco(folder: Path, split: str, indices: Iterable[int]) -> Path:
    """Writes pictures of a split and their ``annotations.json``, COCO instances format, into ``folder``.

    Category ids are the labels, 1 to 10; each annotation has its box, its ink as a run-length mask, and its
    keypoints; an image's id is its index in the split.

    Returns:
        the path of the annotations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in indices:
        picture = compose_picture(split, index)
        file_name = f"digits_{split}_{index:06d}.jpg"
        # No subsampling, because small coloured digits need sharp colours.
        Image.fromarray(picture.pixels).save(folder / file_name, quality=JPEG_QUALITY, subsampling=0)
        height, width = picture.pixels.shape[:2]
        images.append({"id": index, "file_name": file_name, "width": width, "height": height})
        for annotation in _annotations(picture):
            annotations.append({"id": len(annotations) + 1, "image_id": index, **annotation})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": label, "name": name, "keypoints": KEYPOINT_NAMES, "skeleton": SKELETON}
            for label, name in enumerate(CLASS_NAMES, start=1)
        ],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content) + "\n")
    return path


def main(argv: list[str] | None = None) -> int:
    """Writes a part of a split as a COCO-format folder."""
    parser = argparse.ArgumentParser(prog="python -m rcnn_export.digits.dataset", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=SPLITS, default="held-out")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--count", type=int, default=500, help="how many pictures, from the first on (default: 500)"
    )
    chosen.add_argument("--indices", type=int, nargs="+", help="these pictures")
    arguments = parser.parse_args(argv)
    indices = arguments.indices or range(arguments.count)
    path = write_coco(arguments.folder, arguments.split, track(indices, "composing"))
    print(f"wrote {len(indices)} pictures and {path}")
    return 0


def _annotations(picture: DigitPicture) -> list[dict[str, Any]]:
    records = []
    columns = picture.boxes.tolist(), picture.labels.tolist(), picture.masks, picture.keypoints
    for box, label, ink, keypoints in zip(*columns, strict=True):
        left, top, right, bottom = box
        segmentation = rle.encode(np.asfortranarray(ink, dtype=np.uint8))
        records.append(
            {
                "category_id": label,
                "bbox": [left, top, right - left, bottom - top],
                "area": int(ink.sum()),
                "iscrowd": 0,
                "segmentation": {"size": segmentation["size"], "counts": segmentation["counts"].decode()},
                "keypoints": keypoints.ravel().tolist(),
                "num_keypoints": len(keypoints),
            }
        )
    return records


if __name__ == "__main__":
    raise SystemExit(main())
