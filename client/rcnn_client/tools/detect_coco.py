"""rcnn-detect's COCO results, and the ids in them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from .arguments import STDIO
from .coco_file import Category, Id, box_record, match_classes, read_categories, read_content, read_images
from .coco_shapes import SHAPES
from .detect_inputs import Picture
from .detect_outputs import Found


class ImageIds:
    """The ids in COCO results: from an annotation file, or else the pictures' numbers and the model's labels.

    The boxes of the file are not read, and it may have none, like the file of a test set.

    Raises:
        ValueError: the annotation file cannot be used.
    """

    def __init__(self, annotations: Path | None) -> None:
        self._annotations = annotations
        self._categories: list[Category] = []
        self._image_ids: dict[str, Id] = {}
        self._category_ids: dict[int, Id] = {}
        if annotations is not None:
            content = read_content(annotations)
            self._categories = read_categories(content, annotations)
            self._image_ids = {image.file_name: image.id for image in read_images(content, annotations)}

    def match(self, class_names: list[str]) -> None:
        """Match the model's classes (index 0 is the background) to the annotated categories.

        Raises:
            ValueError: a category is not a class of the model.
        """
        self._category_ids = match_classes(class_names, self._categories)

    def image_id(self, picture: Picture) -> Any:
        """The id of a picture: that of the longest annotated file name that its path ends with.

        Raises:
            ValueError: the picture is not annotated.
        """
        if self._annotations is None:
            return picture.number
        parts = Path(picture.file).parts
        for start in range(len(parts)):
            if (name := "/".join(parts[start:])) in self._image_ids:
                return self._image_ids[name]
        raise ValueError(f"is not in {self._annotations}, so it has no image id")

    def category_id(self, label: int) -> Id | None:
        """The category id of a class; None if the class is not annotated."""
        return label if self._annotations is None else self._category_ids.get(label)


class CocoResults:
    """Writes COCO's results format, a list of records, one picture after the other.

    Args:
        target: a file, which is overwritten, or "-" for stdout.
        ids: the ids of pictures and classes.
    """

    def __init__(self, target: str, ids: ImageIds) -> None:
        self._ids = ids
        self._separator = "[\n"
        self._stream: TextIO = sys.stdout
        if target != STDIO:
            path = Path(target)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("w", encoding="utf-8")

    def __enter__(self) -> CocoResults:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.write("\n]\n" if self._separator != "[\n" else "[]\n")
        if self._stream is not sys.stdout:
            self._stream.close()

    def write(self, picture: Picture, found: Found) -> None:
        """Add the records of a picture; `file_name` is for human readers, COCO's tools ignore it.

        Raises:
            ValueError: the picture is not annotated.
        """
        image_id = self._ids.image_id(picture)
        for each in found:
            category_id = self._ids.category_id(each["label"])
            if category_id is None:
                continue
            shapes = {field: each[field] for field in SHAPES if field in each}
            extras = {"score": each["score"], **shapes, "file_name": picture.name}
            record = box_record(image_id, category_id, each["box"], **extras)
            self._stream.write(self._separator + json.dumps(record))
            self._separator = ",\n"
