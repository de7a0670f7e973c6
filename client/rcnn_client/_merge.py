"""Decides which detections of overlapping tiles are the same object, like SAHI (`sahi.postprocess.combine`, 0.12.8).

n boxes of one class; x1, y1, x2, y2 in pixels of the picture. Overlaps are computed one row at a time, so
that memory stays at O(n) even if a picture has thousands of tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._masks import MaskCrop

MergeMethod = Literal["greedy_nmm", "nmm", "nms"]
MergeMetric = Literal["ios", "iou"]


class Merging(NamedTuple):
    """How detections of one object are found and merged: `detect_tiled`'s `merge`, `merge_metric`, `merge_thresh`."""

    method: MergeMethod
    metric: MergeMetric
    thresh: float


def group_by_object(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    how: Merging,
) -> list[list[int]]:
    """The detections of each object, best score first; the objects by their best scores, best first.

    Detections of different classes are different objects. With "nms", an object has one detection; the others are
    left out.
    """
    groups: list[list[int]] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        find = _chains if how.method == "nmm" else _matches_of_the_best
        for members in find(boxes[rows], scores[rows], how):
            groups.append(rows[members[:1] if how.method == "nms" else members].tolist())
    return sorted(groups, key=lambda members: -scores[members[0]])


def merge_boxes(
    boxes: NDArray[np.float32], members: Sequence[int], how: Merging
) -> tuple[NDArray[np.float32], list[int]]:
    """The smallest box around an object's detections, and which of them are in it.

    The box grows from the first detection. A detection that does not match the grown box is dropped.
    """
    first, *others = members
    box, kept = boxes[first], [first]
    for other in others:
        if overlaps(box, boxes[other : other + 1], how.metric)[0] >= how.thresh:
            box = np.append(np.minimum(box[:2], boxes[other, :2]), np.maximum(box[2:], boxes[other, 2:]))
            kept.append(other)
    return box, kept


def overlaps(
    box: NDArray[np.float32], boxes: NDArray[np.float32], metric: MergeMetric
) -> NDArray[np.float32]:
    """Intersection of the box with each of the n boxes, over the union ("iou") or over the smaller one ("ios")."""
    left, top, right, bottom = box
    lefts, tops, rights, bottoms = boxes.T
    widths = np.minimum(right, rights) - np.maximum(left, lefts)
    heights = np.minimum(bottom, bottoms) - np.maximum(top, tops)
    shared = widths.clip(min=0) * heights.clip(min=0)
    area, areas = (right - left) * (bottom - top), (rights - lefts) * (bottoms - tops)
    whole = np.minimum(area, areas) if metric == "ios" else area + areas - shared
    share: NDArray[np.float32] = np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
    return share


def unite_masks(masks: Sequence[MaskCrop]) -> MaskCrop:
    """The pixels that belong to at least one of the masks."""
    masks = [each for each in masks if each.mask.size]
    if not masks:
        return MaskCrop(np.zeros((0, 0), np.bool_), 0, 0)
    top, left = min(each.top for each in masks), min(each.left for each in masks)
    bottom = max(each.top + each.mask.shape[0] for each in masks)
    right = max(each.left + each.mask.shape[1] for each in masks)
    united = np.zeros((bottom - top, right - left), np.bool_)
    for mask, own_top, own_left in masks:
        rows = slice(own_top - top, own_top - top + mask.shape[0])
        united[rows, own_left - left : own_left - left + mask.shape[1]] |= mask
    return MaskCrop(united, top, left)


def _by_score(boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """The order of the boxes: best score first; for equal scores by x1, y1, x2, y2."""
    x1, y1, x2, y2 = boxes.T
    order: NDArray[np.int64] = np.lexsort((y2, x2, y1, x1, -scores))
    return order


def _matches_of_the_best(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], how: Merging
) -> Iterator[NDArray[np.int64]]:
    """Greedy: the best detection that is left and all that match it, until none is left."""
    rest = _by_score(boxes, scores)
    while len(rest):
        best, rest = rest[0], rest[1:]
        is_match = overlaps(boxes[best], boxes[rest], how.metric) >= how.thresh
        yield np.append(best, rest[is_match])
        rest = rest[~is_match]


def _chains(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], how: Merging
) -> Iterator[NDArray[np.int64]]:
    """Transitive: the best detection, all that match it, all worse ones that match these, and so on."""
    best_of = np.full(len(boxes), -1)
    chains: dict[int, list[int]] = {}
    for row in _by_score(boxes, scores):
        if best_of[row] < 0:
            best_of[row] = row
            chains[row] = [row]
        free = np.flatnonzero(best_of < 0)
        # a detection with an equal score joins only if its box is the same
        is_worse = (scores[free] < scores[row]) | (boxes[free] == boxes[row]).all(axis=1)
        matches = free[is_worse & (overlaps(boxes[row], boxes[free], how.metric) >= how.thresh)]
        best_of[matches] = best_of[row]
        chains[best_of[row]] += matches.tolist()
    return (np.array(members) for members in chains.values())
