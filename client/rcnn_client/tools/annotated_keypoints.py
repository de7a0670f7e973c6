"""The keypoints of a COCO file where they are needed: every fault is an error. P keypoints for each object."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from .annotated_boxes import LARGEST_PX, Boxes, name_of
from .coco_file import Records, is_number, listed, shown

KEYPOINTS = "expected x, y in pixels and a visibility of each, [x1, y1, v1, x2, y2, v2, ...]"


def check_keypoints(records: Records, path: Path) -> int:
    """Check the keypoints of annotations; some may have none.

    Returns:
        P, or 0 where there are none at all.

    Raises:
        ValueError: keypoints cannot be used, or there are different numbers of them; the message names the first few.
    """
    faults: dict[str, list[str]] = defaultdict(list)
    first_of: dict[int, str] = {}
    for number, record in enumerate(records):
        if not (value := record.get("keypoints")):
            continue
        if what := _fault(value):
            faults[what].append(f"{name_of(record, number)} has {shown(value)}")
        else:
            first_of.setdefault(len(value) // 3, name_of(record, number))
    for what, names in faults.items():
        raise ValueError(
            f"{path}: {len(names)} of {len(records)} annotations have {what} ({KEYPOINTS}): {listed(names)}"
        )
    if len(first_of) > 1:
        numbers = " and ".join(f"{count} ({name})" for count, name in sorted(first_of.items()))
        raise ValueError(
            f"{path}: annotations have different numbers of keypoints, such as {numbers}: give all the same, with the "
            "visibility 0 where a keypoint is not labelled"
        )
    return next(iter(first_of), 0)


def count_labelled(boxes: Boxes, path: Path) -> int:
    """How many objects have labelled keypoints; their keypoints have been checked.

    Raises:
        ValueError: none has any, or most have all of them outside their boxes.
    """
    outside, count = [], 0
    for record, (left, top, right, bottom) in zip(boxes.records, boxes.visible().tolist(), strict=True):
        value = record.get("keypoints") or []
        points = [(x, y) for x, y, v in zip(value[0::3], value[1::3], value[2::3], strict=True) if v > 0]
        count += bool(points)
        if points and not any(left <= x <= right and top <= y <= bottom for x, y in points):
            outside.append(f"{list(points[0])} in an object whose bbox is {record['bbox']}")
    if not count:
        raise ValueError(f"{path} has no labelled keypoints to train on or to compare with: {KEYPOINTS}")
    if len(outside) * 2 > count:
        raise ValueError(
            f"{path}: {len(outside)} of {count} objects have all their keypoints outside their boxes, such as "
            f"{outside[0]}: {KEYPOINTS}"
        )
    return count


def read_keypoint_names(categories: Records, count: int, path: Path) -> list[str] | None:
    """The names of the keypoints, as the records of the categories list them under `keypoints`.

    Args:
        count: P.

    Returns:
        P names, or None where no category has any.

    Raises:
        ValueError: these are no names, not P, or those of several categories differ.
    """
    names: list[str] | None = None
    for category in categories:
        if not (value := category.get("keypoints")):
            continue
        lists = f"{path}: the category {shown(category['name'])} lists the keypoints {shown(value)}"
        if not isinstance(value, list) or not all(map(_is_name, value)):
            raise ValueError(f"{lists}: expected a list of names, each one line of text")
        stripped = [name.strip() for name in value]
        if len(set(stripped)) < len(stripped):
            raise ValueError(f"{lists}: expected a name of its own for each")
        if len(stripped) != count:
            raise ValueError(f"{lists}, {len(stripped)} names, but the annotations have {count} keypoints")
        if names not in (None, stripped):
            raise ValueError(
                f"{lists}, and another category {shown(names)}: expected the same for all categories"
            )
        names = stripped
    return names


def _fault(value: Any) -> str | None:
    """What is wrong with the keypoints of an annotation."""
    if not isinstance(value, list) or not all(map(is_number, value)):
        return "keypoints that are no list of numbers"
    if len(value) % 3:
        return "keypoints whose numbers do not come in threes"
    if set(value[2::3]) - {0, 1, 2}:
        return "keypoints with a visibility other than 0 (not labelled), 1 (hidden) and 2 (visible)"
    if any(abs(each) >= LARGEST_PX for each in value):
        return "keypoints beyond any picture"
    return None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value.strip().splitlines()) == 1
