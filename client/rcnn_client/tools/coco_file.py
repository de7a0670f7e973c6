"""COCO's instances format: the parts that an evaluation reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Records = list[dict[str, Any]]


def read_instances(path: Path) -> dict[str, Any]:
    """Read a COCO instances file.

    Returns:
        its content, with `images`, `annotations` and `categories`; their records are not checked.

    Raises:
        ValueError: it cannot be read, or is not a COCO instances file; the message names it.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the annotations {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Expected a COCO instances file") from error
    absent = [key for key in ("images", "annotations", "categories") if key not in content]
    if not isinstance(content, dict) or absent:
        raise ValueError(f"{path} has no {', '.join(absent)}: expected a COCO instances file")
    return content


def box_record(image_id: Any, category_id: int, box: Sequence[float], **extras: Any) -> dict[str, Any]:
    """A COCO record (x1, y1, width, height) of a box x1, y1, x2, y2, with `extras` as further fields."""
    x1, y1, x2, y2 = box
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **extras}


def check_instances(content: dict[str, Any], path: Path) -> None:
    """Check the fields that an evaluation needs. Boxes are not checked; pycocotools does not either.

    Raises:
        ValueError: a record lacks a field or has an unknown id, two categories share a name, or a list is empty.
    """
    needs = {
        "images": {"id", "file_name", "width", "height"},
        "annotations": {"image_id", "category_id", "bbox"},
        "categories": {"id", "name"},
    }
    for part, fields in needs.items():
        for position, record in enumerate(content[part]):
            if not isinstance(record, dict) or not fields <= record.keys():
                raise ValueError(
                    f"{path}: {part}[{position}] is {record}: expected {', '.join(sorted(fields))}"
                )
        if not content[part]:
            raise ValueError(f"{path} lists no {part}")
    known = {part: {record["id"] for record in content[part]} for part in ("images", "categories")}
    for position, record in enumerate(content["annotations"]):
        for field, part in (("image_id", "images"), ("category_id", "categories")):
            if record[field] not in known[part]:
                raise ValueError(
                    f"{path}: annotations[{position}] has the {field} {record[field]}, which is not in {part}"
                )
    names = Counter(category["name"] for category in content["categories"])
    if shared := [name for name, count in names.items() if count > 1]:
        raise ValueError(
            f"{path}: several categories are named {', '.join(map(repr, shared))}; classes are matched by "
            "name, so give each category its own"
        )


def match_classes(class_names: list[str], categories: Records) -> dict[int, int]:
    """Match a server's classes to an annotation file's categories, by name.

    Args:
        class_names: index is the label; index 0 is the background.
        categories: `id` and `name`.

    Returns:
        label -> category id. A class without a category is left out, and its detections are not scored: a file
        may annotate only a few of the classes.

    Raises:
        ValueError: some categories are no classes of the server; the message names all of them.
    """
    id_of = {category["name"]: category["id"] for category in categories}
    unknown = [name for name in id_of if name not in class_names[1:]]
    if unknown:
        spare = [name for name in class_names[1:] if name not in id_of]
        raise ValueError(
            f"{len(unknown)} of {len(categories)} annotated categories are no class of the model: "
            f"{_listed(unknown)}. Classes of the model that are not annotated: {_listed(spare)}. "
            "Names must be equal: rename the categories, or export the model with --labels"
        )
    return {label: id_of[name] for label, name in enumerate(class_names) if label and name in id_of}


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:20])
    return f"{shown}, and {len(names) - 20} more" if len(names) > 20 else shown or "none"
