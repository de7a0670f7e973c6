"""The masks and keypoints of a COCO file's annotations. They are optional: a record without usable ones keeps its box."""

from __future__ import annotations

from typing import Any

from .coco_file import is_number

LARGEST_PX = 1e5  # pycocotools walks along the sides of a polygon

Segmentation = list[list[float]] | dict[str, Any]  # polygons, or a run-length code


def read_segmentation(record: dict[str, Any], size: tuple[int, int]) -> Segmentation | None:
    """The mask of a record; None if it has none that can be used.

    Args:
        size: width and height of the picture in pixels.

    Returns:
        polygons, each x1, y1, x2, y2, ... of at least three corners; or a run-length code of the whole picture:
        `size`, [height, width], and `counts`, a list of numbers or COCO's compressed text.
    """
    value: Any = record.get("segmentation")
    if isinstance(value, dict):
        return value if _is_rle(value, size) else None
    is_polygons = isinstance(value, list) and value and all(map(_is_polygon, value))
    return value if is_polygons else None


def read_keypoints(record: dict[str, Any]) -> list[float] | None:
    """The keypoints of a record as x1, y1, v1, x2, ...; None if it has none that can be used."""
    value: Any = record.get("keypoints")
    if not isinstance(value, list) or not value or len(value) % 3 or not all(map(is_number, value)):
        return None
    return value if set(value[2::3]) <= {0, 1, 2} else None


def num_keypoints(keypoints: list[float]) -> int:
    """How many of a record's keypoints are labelled."""
    return sum(visibility > 0 for visibility in keypoints[2::3])


def _is_polygon(value: Any) -> bool:
    is_even_list = isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0
    return is_even_list and all(is_number(each) and abs(each) < LARGEST_PX for each in value)


def _is_rle(value: dict[str, Any], size: tuple[int, int]) -> bool:
    width, height = size
    counts = value.get("counts")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    return (
        value.get("size") == [height, width]
        and isinstance(counts, list)
        and all(isinstance(count, int) and count >= 0 for count in counts)
        and sum(counts) == height * width
    )


def decode_counts(text: str) -> list[int] | None:
    """The runs in COCO's compressed text, as in `rleFrString` of pycocotools; None where it is none.

    A character holds five bits of a number and whether more follow; from the fourth run on, the number is the
    difference to the last run but one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if shift == 0 else None
