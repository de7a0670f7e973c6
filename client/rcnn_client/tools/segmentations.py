"""Reads one segmentation of a COCO file: polygons, or either of COCO's run-length encodings."""

from __future__ import annotations

from typing import Any

from pycocotools import mask as rle

from .._run_lengths import decode_counts
from .coco_file import is_number

Rle = dict[str, Any]
"""COCO's compressed encoding: `size`, [height, width], and `counts`, bytes."""

LeftOut = tuple[str, str]
"""Why there is no mask, in the singular and in the plural."""

MISSING = ("annotation without a segmentation", "annotations without a segmentation")
TOO_FEW_POINTS = ("mask of fewer than 3 points", "masks of fewer than 3 points")
NO_PIXEL = ("mask that covers no pixel of its picture", "masks that cover no pixel of their pictures")

SEGMENTATION = (
    "expected polygons in pixels, [[x1, y1, x2, y2, x3, y3, ...], ...], or COCO's run-length encoding"
)
UNUSABLE = f"a segmentation that cannot be used ({SEGMENTATION})"
OTHER_SIZE = "a run-length mask of another size than their picture (expected [height, width])"
UNFILLED = "a run-length mask whose runs do not add up to the pixels of their picture"
FARTHEST = 10  # sizes of the picture; pycocotools needs memory for each pixel of an outline, even outside the picture


class UnusableError(Exception):
    """A segmentation cannot be used: what is wrong with it, and the value that shows it."""

    def __init__(self, what: str, shows: Any) -> None:
        super().__init__(what)
        self.what, self.shows = what, shows


def read_segmentation(segmentation: Any, height: int, width: int) -> Rle | LeftOut:
    """The mask for a picture of that size, or why there is none.

    Raises:
        UnusableError: it is neither polygons nor a run-length encoding, or does not fit this picture.
    """
    if not segmentation:
        return MISSING
    if isinstance(segmentation, dict):
        mask = _from_runs(segmentation, height, width)
    elif isinstance(segmentation, list) and all(_is_polygon(each, height, width) for each in segmentation):
        # pycocotools would read four numbers as a box; fewer than three points enclose no area.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return TOO_FEW_POINTS
        mask = rle.merge(rle.frPyObjects(polygons, height, width))
    else:
        raise UnusableError(UNUSABLE, segmentation)
    return mask if rle.area(mask) > 0 else NO_PIXEL


def _is_polygon(value: Any, height: int, width: int) -> bool:
    farthest = FARTHEST * max(height, width)
    return (
        isinstance(value, list)
        and len(value) % 2 == 0
        and all(is_number(each) and abs(each) <= farthest for each in value)
    )


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> Rle:
    """The mask of either run-length encoding: a list of lengths, or text."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not (isinstance(size, list) and isinstance(counts, list) and all(map(_is_run, counts))):
        raise UnusableError(UNUSABLE, segmentation)
    if size != [height, width]:
        raise UnusableError(OTHER_SIZE, size)
    # If the runs do not cover all pixels, pycocotools leaves the others undefined.
    runs = [int(run) for run in counts]
    if sum(runs) != height * width:
        raise UnusableError(UNFILLED, sum(runs))
    mask: Rle = rle.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return mask


def _is_run(value: Any) -> bool:
    return is_number(value) and value >= 0 and value == int(value)
