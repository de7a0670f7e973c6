"""Compares arrays of each stage of a pipeline with torchvision's: features, pooled features, scores and boxes.

In every pair of arguments torchvision's comes first. These functions, and those of compare_selections.py and
compare_heads.py, are used in two ways. They compare a stage alone, on torchvision's own input: the links between the
stage's inputs are then identities. They also compare it end to end: the links then come from the stages before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rcnn_export.verify.differences import Comparison
from rcnn_export.verify.matching import UNMATCHED, Float, Indices, Matching
from rcnn_export.verify.ties import Link

# A RoI within this relative distance of a boundary between pyramid levels may be pooled from either level.
LEVEL_TOLERANCE = 1e-4


@dataclass(frozen=True)
class PyramidScale:
    """What a RoI's features depend on in addition to its box."""

    boundaries_px: npt.NDArray[np.floating]  # sizes, sqrt(area), at which RoIs go to the next level
    finest_stride_px: int
    largest_feature: float  # magnitude, in the image


def compare_array(comparison: Comparison, where: str, reference: Float, exported: Float) -> None:
    """One dense array of an image, relative to the reference's largest magnitude in it."""
    if reference.shape != exported.shape:
        comparison.difference("relative").add(np.array([np.nan]), comparison.bounds.array)
        comparison.unexplained.append(
            f"{where}: shape {list(exported.shape)}, torchvision's is {list(reference.shape)}"
        )
        return
    scale = float(np.abs(reference).max()) or 1.0
    comparison.difference("relative").add(np.abs(reference - exported) / scale, comparison.bounds.array)


def compare_pooled(
    comparison: Comparison,
    pooled: tuple[Float, Float],
    proposals: tuple[Float, Float],
    link: Link,
    pyramid: PyramidScale,
) -> Link:
    """RoIAligned features [R, C, h, w] of each side's ``proposals``, RoI by RoI.

    Differences are relative to the reference's largest magnitude in the image. If a RoI differs
    by d pixels, its samples are at most d / stride cells off on each axis, and a bilinear sample
    changes by at most twice the largest feature per cell. This much is allowed in addition to the
    bound of arrays.

    Returns:
        ``link`` without the RoIs that were pooled from different levels.
    """
    in_a, in_b = link.matching.pairs()
    scale = float(np.abs(pooled[0]).max(initial=0)) or 1.0
    differences = np.abs(pooled[0][in_a] - pooled[1][in_b]) / scale  # [pairs, C, h, w]
    shift_px = np.abs(proposals[0][in_a] - proposals[1][in_b]).max(axis=1, initial=0)  # [pairs]
    bounds = (
        comparison.bounds.array + 4 * shift_px / pyramid.finest_stride_px * pyramid.largest_feature / scale
    )
    flipped = (differences.max(axis=(1, 2, 3), initial=0) > bounds) & (
        _is_at_boundary(proposals[0][in_a], pyramid.boundaries_px)
        | _is_at_boundary(proposals[1][in_b], pyramid.boundaries_px)
    )
    comparison.difference("relative").add(differences[~flipped], bounds[~flipped, None, None, None])
    comparison.matched += int((~flipped).sum())
    comparison.rows += len(in_a)
    if flipped.any():
        comparison.explained["size at a level boundary"] += int(flipped.sum())
    return _without(link, in_a[flipped], in_b[flipped])


def compare_header(
    comparison: Comparison,
    class_scores: tuple[Float, Float],
    class_boxes: tuple[Float, Float],
    link: Link,
    torchvision_header: Callable[[Indices], tuple[Float, Float]] | None = None,
) -> Link:
    """Scores [R, K] and boxes [R, K, 4] of each side, RoI by RoI.

    Args:
        torchvision_header: given if the two sides had different RoIs; returns torchvision's scores and boxes for
            some of the export's RoIs. A header can enlarge a small difference by an unknown factor, most of all an
            untrained one. So a pair out of bounds is explained if both headers, given the export's RoI, agree within
            the bounds. If mismatches need no explanation, such a pair counts as a mismatch.

    Returns:
        ``link`` without the RoIs that were explained.
    """
    in_a, in_b = link.matching.pairs()
    bounds = comparison.bounds
    scores = np.abs(class_scores[0][in_a] - class_scores[1][in_b])  # [pairs, K]
    boxes = class_boxes[0][in_a]
    shifts = np.abs(boxes - class_boxes[1][in_b]).max(axis=2)  # [pairs, K]
    bounds_px = bounds.boxes_px(boxes)
    differs = (scores > bounds.score).any(axis=1) | (shifts > bounds_px).any(axis=1)  # [pairs]
    if torchvision_header is None:
        differs[:] = False
    elif bounds.explains and differs.any():
        expected_scores, expected_boxes = torchvision_header(in_b[differs])
        own_scores, own_boxes = class_scores[1][in_b[differs]], class_boxes[1][in_b[differs]]
        agrees = (np.abs(expected_scores - own_scores) <= bounds.score).all(axis=1)
        own_shifts = np.abs(expected_boxes - own_boxes).max(axis=2)  # [differing, K]
        agrees &= (own_shifts <= bounds.boxes_px(expected_boxes)).all(axis=1)
        differs[differs] = agrees
        if agrees.any():
            comparison.explained["both headers agree on the exported RoI"] += int(agrees.sum())
    comparison.difference("score").add(scores[~differs], bounds.score)
    comparison.difference("px").add(shifts[~differs], bounds_px[~differs])
    comparison.matched += int((~differs).sum())
    comparison.rows += len(in_a)
    return _without(link, in_a[differs], in_b[differs]) if bounds.explains else link


def _without(link: Link, in_a: Indices, in_b: Indices) -> Link:
    """The link without these pairs, whose rows are no longer comparable for a reason that was explained."""
    matching = Matching(link.matching.a_to_b.copy(), link.matching.b_to_a.copy())
    lost_a, lost_b = link.lost_a.copy(), link.lost_b.copy()
    matching.a_to_b[in_a] = matching.b_to_a[in_b] = UNMATCHED
    lost_a[in_a] = lost_b[in_b] = True
    return Link(matching, lost_a, lost_b)


def _is_at_boundary(boxes: Float, boundaries_px: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Which boxes [n, 4] have a size, sqrt(area), within LEVEL_TOLERANCE of a boundary between levels."""
    size = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))[:, None]  # [n, 1]
    near: npt.NDArray[np.bool_] = (np.abs(size - boundaries_px) <= LEVEL_TOLERANCE * boundaries_px).any(
        axis=1
    )
    return near
