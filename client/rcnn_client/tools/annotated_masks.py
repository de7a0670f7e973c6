"""The masks of a COCO instances file, as run-length encodings. N objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from .annotated_boxes import Boxes, raise_faults
from .coco_file import shown
from .segmentations import SEGMENTATION, LeftOut, Rle, UnusableError, read_segmentation


def read_masks(boxes: Boxes, path: Path) -> list[Rle | LeftOut]:
    """Read the segmentations of boxes: for each its mask, or why it has none.

    Raises:
        ValueError: a segmentation cannot be used, or does not fit its picture; the message names the first few.
    """
    masks: list[Rle | LeftOut] = []
    faults: dict[str, list[str]] = defaultdict(list)
    for number, (record, (width, height)) in enumerate(
        zip(boxes.records, boxes.sizes.astype(int).tolist(), strict=True)
    ):
        try:
            masks.append(read_segmentation(record.get("segmentation"), height, width))
        except UnusableError as fault:
            faults[fault.what].append(f"{boxes.name(number)} has {shown(fault.shows)}")
    raise_faults(faults, len(boxes), path)
    return masks


def check_masks_fit(masks: Sequence[Rle], boxes: Boxes, path: Path) -> None:
    """Check that masks are at the same place as the boxes of their objects.

    Raises:
        ValueError: most masks do not touch their boxes.
    """
    if not masks:
        return
    corners = boxes.visible()
    extents = rle.toBbox(list(masks))  # [N, 4], left, top, width, height
    starts, ends = extents[:, :2], extents[:, :2] + extents[:, 2:]
    is_apart = ((starts >= corners[:, 2:]) | (ends <= corners[:, :2])).any(axis=1)
    if is_apart.mean() > 0.5:
        first = int(np.argmax(is_apart))
        left, top, right, bottom = corners[first].tolist()
        raise ValueError(
            f"{path}: {is_apart.sum()} of {len(masks)} segmentations lie outside their boxes, such as one that covers "
            f"{extents[first].tolist()} where the bbox is {[left, top, right - left, bottom - top]}: {SEGMENTATION}"
        )
