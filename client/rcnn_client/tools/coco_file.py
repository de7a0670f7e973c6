"""COCO's JSON files: the pictures and categories that they list, and the classes of a model matched to them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Records = list[dict[str, Any]]
Id = int | float | str

EXPECTED = "expected a COCO instances file, with images, annotations and categories"
COMPRESSED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
LVIS_FIELDS = {"neg_category_ids", "not_exhaustive_category_ids"}


@dataclass(frozen=True)
class CocoImage:
    """A picture of the file; `size` is its width and height in pixels."""

    id: Id
    file_name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Category:
    """A category of the file; `is_used` if an annotation uses it, or if the file has no annotations.

    `keypoints`: the names that the file lists, unchecked.
    """

    id: Id
    name: str
    is_used: bool
    keypoints: Any = None


def read_content(path: Path) -> dict[str, Any]:
    """Read a COCO file.

    Returns:
        its content; `images`, `categories` and, if it exists, `annotations` are lists of objects.

    Raises:
        ValueError: it cannot be read, or is another kind of file; the message names it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the annotations {path}: {error.strerror}") from error
    for start, name in COMPRESSED.items():
        if data.startswith(start):
            raise ValueError(f"{path} is compressed with {name}: unpack it, and pass the JSON file in it")
    try:
        content = json.loads(data)  # UTF-8, -16 or -32, with or without a byte order mark
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}. Expected a COCO instances file") from error
    return _checked_kind(content, path)


def _checked_kind(content: Any, path: Path) -> dict[str, Any]:
    if isinstance(content, list):
        is_results = content and isinstance(content[0], dict) and "score" in content[0]
        kind = "a list of COCO results" if is_results else "a JSON list"
        raise ValueError(f"{path} is {kind}: {EXPECTED}")
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {shown(content)}: {EXPECTED}")
    for part in ("images", "annotations", "categories"):
        records = content.get(part, [])
        others = (
            [each for each in records if not isinstance(each, dict)]
            if isinstance(records, list)
            else [records]
        )
        if others:
            raise ValueError(f"{path} has {shown(others[0])} under {part}: expected a list of objects")
    annotations, images = content.get("annotations", []), content.get("images", [])
    for field, kind in (("caption", "captions"), ("segments_info", "panoptic")):
        if annotations and field in annotations[0]:
            raise ValueError(f"{path} is a COCO {kind} file, which has no boxes: {EXPECTED}")
    if any(LVIS_FIELDS & image.keys() for image in images):
        raise ValueError(
            f"{path} is an LVIS file. LVIS annotates only some categories in each picture, so COCO's metrics "
            "do not apply to it: use the lvis package"
        )
    absent = [part for part in ("images", "categories") if part not in content]
    if absent:
        absent += [] if "annotations" in content else ["annotations"]
        raise ValueError(f"{path} has no {', '.join(sorted(absent))}: {EXPECTED}")
    return content


def read_images(content: dict[str, Any], path: Path) -> list[CocoImage]:
    """Read the pictures of a file, in the order of their ids.

    Raises:
        ValueError: there are none, one lacks a field, or two have the same id or file name.
    """
    records = content["images"]
    if not records:
        raise ValueError(f"{path} lists no images")
    check_ids(records, "images", path)
    images, faulty = [], []
    for record in records:
        name, *sides = (record.get(field) for field in ("file_name", "width", "height"))
        if isinstance(name, str) and name and all(_is_side(side) for side in sides):
            images.append(CocoImage(record["id"], name, (int(sides[0]), int(sides[1]))))
        else:
            given = {field: record.get(field) for field in ("file_name", "width", "height")}
            faulty.append(f"id {record['id']} ({shown(given)})")
    if faulty:
        raise ValueError(
            f"{path}: {len(faulty)} of {len(records)} images lack a file_name, or a width and a height in "
            f"pixels: {listed(faulty)}"
        )
    if repeated := _repeated(image.file_name for image in images):
        raise ValueError(
            f"{path}: several images have the same file_name: {listed(repeated)}. Give each picture one entry, "
            "with all of its boxes"
        )
    return sorted(images, key=lambda image: image.id)


def read_categories(content: dict[str, Any], path: Path) -> list[Category]:
    """Read the categories of a file, in the order of their ids. Blanks around a name are removed.

    Raises:
        ValueError: there are none, one has no name, or two have the same id; or two that annotations use have
            the same name.
    """
    records = content["categories"]
    if not records:
        raise ValueError(f"{path} lists no categories")
    check_ids(records, "categories", path)
    annotations = content.get("annotations", [])
    used = {id_ for record in annotations if isinstance(id_ := record.get("category_id"), int | float | str)}
    categories = []
    for record in records:
        name = record.get("name")
        text = str(name).strip() if isinstance(name, str | int | float) else ""
        if len(text.splitlines()) != 1:
            raise ValueError(
                f"{path}: the category of id {record['id']} has the name {shown(name)}: expected one line of text"
            )
        categories.append(
            Category(record["id"], text, not annotations or record["id"] in used, record.get("keypoints"))
        )
    if repeated := _repeated(category.name for category in categories if category.is_used):
        raise ValueError(
            f"{path}: several categories are named {listed(map(repr, repeated))}; classes are matched by "
            "name, so give each category its own"
        )
    return sorted(categories, key=lambda category: category.id)


def check_ids(records: Records, part: str, path: Path) -> None:
    """Check that each record has a different id.

    Raises:
        ValueError: an id is neither a number nor text, some are numbers and others are text, or one is repeated.
    """
    ids = [record.get("id") for record in records]
    wrong = [id_ for id_ in ids if not is_number(id_) and not isinstance(id_, str)]
    if wrong:
        raise ValueError(f"{path}: {part} have ids such as {shown(wrong[0])}: expected whole numbers")
    texts = [id_ for id_ in ids if isinstance(id_, str)]
    if 0 < len(texts) < len(ids):
        raise ValueError(
            f"{path}: some ids under {part} are numbers and others are text, such as {shown(texts[0])}: "
            "expected whole numbers"
        )
    if repeated := _repeated(ids):
        raise ValueError(
            f"{path}: ids are repeated under {part}: {listed(repeated)}. If files were merged, "
            "renumber them, and change the annotations accordingly"
        )


def ids_by_name(categories: Iterable[Category]) -> dict[str, Id]:
    """The category id of each name; of two categories with one name, the id of the used one."""
    ordered = sorted(categories, key=lambda category: category.is_used)
    return {category.name: category.id for category in ordered}


def match_classes(class_names: list[str], categories: Sequence[Category]) -> dict[int, Id]:
    """Match a server's classes to an annotation file's categories, by name.

    Args:
        class_names: index is the label; index 0 is the background.
        categories: those of the file.

    Returns:
        label -> category id. A class without a category is left out, and its detections are not scored: a file
        may annotate only a few of the classes. A category that is neither used nor a class is left out, too.

    Raises:
        ValueError: some categories that are used are not classes of the server; the message names them.
    """
    id_of = ids_by_name(categories)
    used = [category.name for category in categories if category.is_used]
    unknown = [name for name in used if name not in class_names[1:]]
    if unknown:
        spare = [name for name in class_names[1:] if name not in id_of]
        raise ValueError(
            f"{len(unknown)} of {len(used)} annotated categories are not classes of the model: "
            f"{listed(map(repr, unknown), 20)}. Classes of the model that are not annotated: "
            f"{listed(map(repr, spare), 20) or 'none'}. "
            "Names must be equal: rename the categories, or export the model with --labels"
        )
    return {label: id_of[name] for label, name in enumerate(class_names) if label and name in id_of}


def box_record(image_id: Any, category_id: Any, box: Sequence[float], **extras: Any) -> dict[str, Any]:
    """A COCO record (x1, y1, width, height) of a box x1, y1, x2, y2, with `extras` as further fields."""
    x1, y1, x2, y2 = box
    bbox = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **extras}


def listed(items: Iterable[Any], most: int = 3) -> str:
    """The first few items as text, and how many more there are."""
    texts = [str(item) for item in items]
    shown = ", ".join(texts[:most])
    return f"{shown}, and {len(texts) - most} more" if len(texts) > most else shown


def shown(value: Any) -> str:
    """A value as it is written in the file, shortened."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 1024


def _is_side(value: Any) -> bool:
    return is_number(value) and value >= 1 and value == int(value)


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]
