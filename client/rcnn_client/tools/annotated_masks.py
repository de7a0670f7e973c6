"""The segmentations of a COCO instances file as run-length masks, from polygons and from both of COCO's encodings. N masks.

A segmentation without a mask in it is left out, for a reason that is one of the constants below.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from .annotated_boxes import name_of
from .annotated_shapes import decode_counts
from .coco_file import Records, is_number, listed, shown

Rle = dict[str, Any]
"""COCO's compressed encoding: `size`, [height, width], and `counts`, bytes."""

LeftOut = tuple[str, str]
"""Why there is no mask: of one annotation, and of several."""

MISSING = ("annotation without a segmentation", "annotations without a segmentation")
TOO_FEW_POINTS = ("mask of fewer than 3 points", "masks of fewer than 3 points")
NO_PIXEL = ("mask that covers no pixel of its picture", "masks that cover no pixel of their pictures")

SEGMENTATION = (
    "expected polygons in pixels, [[x1, y1, x2, y2, x3, y3, ...], ...], or COCO's run-length encoding"
)
UNUSABLE = f"a segmentation that cannot be used ({SEGMENTATION})"
OTHER_SIZE = "a run-length mask of another size than their picture (expected [height, width])"
UNFILLED = "a run-length mask whose runs do not add up to the pixels of their picture"
FARTHEST = 10  # sizes of the picture; pycocotools needs memory for each pixel of an outline, outside too


class _UnusableError(Exception):
    """A segmentation is none: what is wrong with it, and what shows it."""

    def __init__(self, what: str, shows: Any) -> None:
        super().__init__(what)
        self.what, self.shows = what, shows


def read_masks(records: Records, sizes: NDArray[np.float64], path: Path) -> list[Rle | LeftOut]:
    """Read the segmentations of annotations.

    Args:
        records: the N annotations.
        sizes: [N, 2], width and height of each one's picture in pixels.

    Raises:
        ValueError: a segmentation cannot be used, or is not one of its picture; the message names the first few.
    """
    masks: list[Rle | LeftOut] = []
    faults: dict[str, list[str]] = defaultdict(list)
    for number, (record, (width, height)) in enumerate(zip(records, sizes.astype(int).tolist(), strict=True)):
        try:
            masks.append(_read_mask(record.get("segmentation"), height, width))
        except _UnusableError as fault:
            faults[fault.what].append(f"{name_of(record, number)} has {shown(fault.shows)}")
    for what, names in faults.items():
        raise ValueError(f"{path}: {len(names)} of {len(records)} annotations have {what}: {listed(names)}")
    return masks


def check_masks_fit(masks: Sequence[Rle], boxes: NDArray[np.float64], path: Path) -> None:
    """Check that masks lie where the boxes of the same objects do.

    Args:
        boxes: [N, 4], left, top, right, bottom in pixels.

    Raises:
        ValueError: most masks do not touch their boxes.
    """
    if not masks:
        return
    extents = rle.toBbox(list(masks))  # [N, 4], left, top, width, height
    starts, ends = extents[:, :2], extents[:, :2] + extents[:, 2:]
    is_apart = ((starts >= boxes[:, 2:]) | (ends <= boxes[:, :2])).any(axis=1)
    if is_apart.mean() > 0.5:
        first = int(np.argmax(is_apart))
        left, top, right, bottom = boxes[first].tolist()
        raise ValueError(
            f"{path}: {is_apart.sum()} of {len(masks)} segmentations lie outside their boxes, such as one that covers "
            f"{extents[first].tolist()} where the bbox is {[left, top, right - left, bottom - top]}: {SEGMENTATION}"
        )


def _read_mask(segmentation: Any, height: int, width: int) -> Rle | LeftOut:
    if not segmentation:
        return MISSING
    if isinstance(segmentation, dict):
        mask = _from_runs(segmentation, height, width)
    elif isinstance(segmentation, list) and all(_is_polygon(each, height, width) for each in segmentation):
        # pycocotools takes four numbers for a box; less than a triangle has no inside.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return TOO_FEW_POINTS
        mask = rle.merge(rle.frPyObjects(polygons, height, width))
    else:
        raise _UnusableError(UNUSABLE, segmentation)
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
        raise _UnusableError(UNUSABLE, segmentation)
    if size != [height, width]:
        raise _UnusableError(OTHER_SIZE, size)
    # What the runs leave open, pycocotools leaves to chance.
    runs = [int(run) for run in counts]
    if sum(runs) != height * width:
        raise _UnusableError(UNFILLED, sum(runs))
    mask: Rle = rle.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return mask


def _is_run(value: Any) -> bool:
    return is_number(value) and value >= 0 and value == int(value)


def counts_of(masks: Iterable[Rle | LeftOut]) -> list[tuple[int, str, str]]:
    """How many annotations each reason has left out, with its two names."""
    reasons = [mask for mask in masks if isinstance(mask, tuple)]
    return [(reasons.count(reason), *reason) for reason in (MISSING, TOO_FEW_POINTS, NO_PIXEL)]
