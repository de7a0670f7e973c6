"""The keypoints of a COCO file's annotations. N objects, P keypoints each.

In an object without keypoints, all visibilities are 0 (not labelled), as in COCO for people that are too small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .annotated_boxes import LARGEST_PX, Boxes, raise_faults
from .coco_file import Category, is_number, listed, shown

KEYPOINTS = "expected x, y in pixels and a visibility of each, [x1, y1, v1, x2, y2, v2, ...]"
MOST = 0.5  # of the objects


def read_keypoints(boxes: Boxes, path: Path) -> NDArray[np.float64]:
    """Read the keypoints of boxes.

    Returns:
        float64 [N, P, 3], x and y in pixels and visibility 0, 1 or 2; P is 0 if nothing is labelled.

    Raises:
        ValueError: keypoints cannot be used, two objects have different numbers of them, or most objects have all of
            their keypoints outside their boxes; the message names the first few.
    """
    values = [record.get("keypoints") or [] for record in boxes.records]
    faults: dict[str, list[str]] = defaultdict(list)
    for number, value in enumerate(values):
        if what := _fault(value):
            faults[f"{what} ({KEYPOINTS})"].append(f"{boxes.name(number)} has {shown(value)}")
    raise_faults(faults, len(boxes), path)
    counts = np.array([len(value) // 3 if any(value[2::3]) else 0 for value in values], np.int64)
    numbers = np.unique(counts[counts > 0]).tolist()
    if not numbers:
        return np.zeros((len(boxes), 0, 3))
    if len(numbers) > 1:
        named = [f"{boxes.name(int(np.argmax(counts == number)))} has {number}" for number in numbers]
        raise ValueError(
            f"{path}: annotations have different numbers of keypoints: {listed(named)}. Give each object all of its "
            "keypoints, with 0, 0, 0 for each that is not labelled"
        )
    keypoints = np.zeros((len(boxes), *numbers, 3))
    labelled = [value for value, count in zip(values, counts, strict=True) if count]
    keypoints[counts > 0] = np.array(labelled, np.float64).reshape(-1, *numbers, 3)
    _check_fit(keypoints[counts > 0], boxes[counts > 0], path)
    return keypoints


def read_keypoint_names(categories: Sequence[Category], count: int, path: Path) -> list[str] | None:
    """The names of the keypoints, as the categories list them.

    Args:
        count: P.

    Returns:
        P names, or None if no category has any.

    Raises:
        ValueError: they are not names, there are not P of them, or those of several categories differ.
    """
    names: list[str] | None = None
    for category in categories:
        if not (value := category.keypoints):
            continue
        lists = f"{path}: the category {shown(category.name)} lists the keypoints {shown(value)}"
        if not isinstance(value, list) or not all(map(_is_name, value)):
            raise ValueError(f"{lists}: expected a list of names, each one line of text")
        stripped = [name.strip() for name in value]
        if len(set(stripped)) < len(stripped):
            raise ValueError(f"{lists}: expected a different name for each")
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
        return "keypoints that are not a list of numbers"
    if len(value) % 3:
        return "keypoints that do not have three numbers each"
    if set(value[2::3]) - {0, 1, 2}:
        return "keypoints with a visibility other than 0 (not labelled), 1 (hidden) and 2 (visible)"
    if any(abs(each) >= LARGEST_PX for each in value):
        return "keypoints beyond any picture"
    return None


def _check_fit(keypoints: NDArray[np.float64], boxes: Boxes, path: Path) -> None:
    corners = boxes.corners()
    points, is_labelled = keypoints[:, :, :2], keypoints[:, :, 2] > 0
    slack = 0.5 * boxes.bbox[:, None, 2:]  # an annotated box may be smaller than its skeleton
    is_near = ((points >= corners[:, None, :2] - slack) & (points <= corners[:, None, 2:] + slack)).all(
        axis=2
    )
    is_apart = ~(is_near & is_labelled).any(axis=1)
    if is_apart.mean() > MOST:
        first = int(np.argmax(is_apart))
        raise ValueError(
            f"{path}: {is_apart.sum()} of {len(boxes)} objects have all of their keypoints outside their boxes, such "
            f"as {shown(boxes.records[first]['keypoints'])} where the bbox is {boxes.bbox[first].tolist()}: {KEYPOINTS}"
        )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value.strip().splitlines()) == 1
