"""Compares each stage of a pipeline with torchvision's: the differences, the rows that pair, and the others' reasons.

In every pair of arguments torchvision's comes first. The same functions compare a stage alone, which
was given torchvision's own input (the links between the stage's inputs are identities), and end to end
(the links come from the stages before).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rcnn_export.engines.precision import Bounds
from rcnn_export.verify.differences import Comparison
from rcnn_export.verify.matching import (
    UNMATCHED,
    Float,
    Indices,
    Matching,
    Rows,
    find_boxes,
    find_rows,
    match_rows,
    nearest_row,
)
from rcnn_export.verify.reference import ImageDetections
from rcnn_export.verify.ties import (
    Link,
    Mismatch,
    Selection,
    SelectionRules,
    explain_selection,
    explain_top_k,
    link_rows,
)

# A RoI within this of a boundary between pyramid levels, relative, may be pooled from either.
LEVEL_TOLERANCE = 1e-4


@dataclass(frozen=True)
class PyramidScale:
    """What a RoI's features depend on beside its box."""

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


def compare_rpn_boxes(
    comparison: Comparison, where: str, reference: Float, exported: Float, top_n: int
) -> Link:
    """The best anchors of each level, [N, 6] on each side."""
    a, b = _rpn_rows(reference), _rpn_rows(exported)
    bounds = comparison.bounds.boxes_px(a.boxes)
    matching = match_rows(a, b, bounds, comparison.bounds.score)
    only_a, only_b = explain_top_k(a, b, matching, top_n)
    _compare_rows(comparison, where, a, b, bounds, matching, only_a, only_b)
    return link_rows(matching, only_a, only_b)


def compare_proposals(
    comparison: Comparison,
    where: str,
    rpn_boxes: tuple[Float, Float],
    proposals: tuple[Float, Float],
    size_hw: Float,
    link: Link,
    rules: SelectionRules,
) -> Link:
    """What is left of ``rpn_boxes`` ([N, 6] of each side) after NMS: ``proposals`` [R, 4] of each side."""
    a, b = (
        _proposal_selection(rows, boxes, size_hw) for rows, boxes in zip(rpn_boxes, proposals, strict=True)
    )
    rows_a, rows_b = _kept_rows(a, proposals[0]), _kept_rows(b, proposals[1])
    bounds = comparison.bounds.boxes_px(rpn_boxes[0][a.kept, 1:5])
    matching = match_rows(rows_a, rows_b, bounds, comparison.bounds.score)
    only_a, only_b = explain_selection(a, b, matching, link, rules)
    _compare_rows(comparison, where, rows_a, rows_b, bounds, matching, only_a, only_b)
    return link_rows(matching, only_a, only_b)


def compare_pooled(
    comparison: Comparison,
    pooled: tuple[Float, Float],
    proposals: tuple[Float, Float],
    link: Link,
    pyramid: PyramidScale,
) -> Link:
    """RoIAligned features [R, C, h, w] of each side's ``proposals``, RoI by RoI.

    Relative to the reference's largest magnitude in the image. A RoI that differs by d pixels
    has its samples d / stride cells off at most, on each axis, and a bilinear sample changes
    by at most two largest features a cell: that much is allowed beside the bound of arrays.

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
        torchvision_header: where the two sides were given different RoIs, gives torchvision's scores and boxes for
            those of the export that are asked for. What a header makes of a small difference has no limit that
            is known beforehand: untrained ones enlarge it most. So a pair out of bounds is explained where both headers,
            given the export's RoI, agree within the bounds. Where mismatches need no explanation, such a pair
            counts as a mismatch.

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


def compare_detections(
    comparison: Comparison,
    where: str,
    class_scores: tuple[Float, Float],
    class_boxes: tuple[Float, Float],
    detections: tuple[ImageDetections, ImageDetections],
    image_size: Float,
    link: Link,
    rules: SelectionRules,
) -> Link:
    """The final detections of each side; ``link`` is between the proposals, the returned one between the detections.

    Args:
        image_size: resized height and width, original height and width.
    """
    a, b = (
        _detection_selection(scores, boxes, found, image_size, comparison.bounds)
        for scores, boxes, found in zip(class_scores, class_boxes, detections, strict=True)
    )
    rows_a, rows_b = (Rows(found.boxes, found.scores, found.labels) for found in detections)
    bounds = np.full(len(rows_a), comparison.bounds.box_px, np.float32)
    matching = match_rows(rows_a, rows_b, bounds, comparison.bounds.score)
    candidates = _link_classes(link, class_scores[0].shape[1])
    only_a, only_b = explain_selection(a, b, matching, candidates, rules)
    _compare_rows(comparison, where, rows_a, rows_b, bounds, matching, only_a, only_b)
    return link_rows(matching, only_a, only_b)


def compare_maps(
    comparison: Comparison,
    maps: tuple[Float, Float],
    link: Link,
    bound: float,
    torchvision_head: Callable[[Indices], Float] | None = None,
) -> None:
    """What a head makes of the detections, [n, ...] of each side, detection by detection.

    Args:
        bound: the largest difference.
        torchvision_head: where the two sides were given different features, gives torchvision's maps for those of
            the export that are asked for; see ``compare_header``.
    """
    in_a, in_b = link.matching.pairs()
    differences = np.abs(maps[0][in_a] - maps[1][in_b])  # [pairs, ...]
    differs = _any_in_row(differences > bound)
    if torchvision_head is None:
        differs[:] = False
    elif comparison.bounds.explains and differs.any():
        own, expected = maps[1][in_b[differs]], torchvision_head(in_b[differs])
        agrees = ~_any_in_row(np.abs(own - expected) > bound)
        differs[differs] = agrees
        if agrees.any():
            comparison.explained["both heads agree on the exported RoI"] += int(agrees.sum())
    comparison.difference("value").add(differences[~differs], bound)
    comparison.matched += int((~differs).sum())
    comparison.rows += len(in_a)


def compare_keypoints(
    comparison: Comparison,
    found: tuple[Mapping[str, Float], Mapping[str, Float]],
    link: Link,
    score_bound: float,
    torchvision_keypoints: Callable[[Indices], Mapping[str, Float]] | None = None,
) -> None:
    """``keypoints`` [n, P, 3] and ``keypoint_scores`` [n, P] of each side, keypoint by keypoint.

    A keypoint is where its heatmap is highest. Two places whose values differ by less than the bound of scores can
    change places: that is a tie, and both scores are within the bound.

    Args:
        score_bound: the largest difference of a value of the heatmaps.
        torchvision_keypoints: where the two sides were given different heatmaps or boxes, gives torchvision's
            keypoints for those detections of the export that are asked for. A box that differs a little can make
            its map a pixel wider, and every place in it another.
    """
    in_a, in_b = link.matching.pairs()
    bounds = comparison.bounds
    ours = found[1]["keypoints"][in_b]
    shifts = np.abs(found[0]["keypoints"][in_a] - ours).max(axis=2, initial=0)  # [pairs, P]
    scores = np.abs(found[0]["keypoint_scores"][in_a] - found[1]["keypoint_scores"][in_b])
    ties = (shifts > bounds.box_px) & (scores <= score_bound)
    moved = np.zeros_like(ties)
    rows = _any_in_row((shifts > bounds.box_px) | (scores > score_bound))
    if torchvision_keypoints is not None and bounds.explains and rows.any():
        expected = torchvision_keypoints(in_b[rows])
        own_shifts = np.abs(expected["keypoints"] - ours[rows]).max(axis=2, initial=0)
        moved[rows] = (own_shifts <= bounds.box_px) & ((shifts > bounds.box_px) | (scores > score_bound))[
            rows
        ]
        ties &= ~moved
    for reason, which in (
        ("tie of the heatmap", ties),
        ("torchvision finds it there in the exported heatmap", moved),
    ):
        if which.any():
            comparison.explained[reason] += int(which.sum())
    comparison.difference("px").add(shifts[~ties & ~moved], bounds.box_px)
    comparison.difference("value").add(scores[~moved], score_bound)
    comparison.matched += len(in_a)
    comparison.rows += len(in_a)


def _any_in_row(differs: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[n, ...] -> [n]."""
    rows: npt.NDArray[np.bool_] = differs.any(axis=tuple(range(1, differs.ndim)))
    return rows


def clip(boxes: Float, size_hw: Float) -> Float:
    """torchvision's ``clip_boxes_to_image``, for boxes [n, 4]."""
    height, width = size_hw
    return boxes.clip(0, np.array([width, height, width, height], np.float32))


def _rpn_rows(rpn_boxes: Float) -> Rows:
    return Rows(rpn_boxes[:, 1:5], rpn_boxes[:, 0], rpn_boxes[:, 5].astype(np.int64))


def _proposal_selection(rpn_boxes: Float, proposals: Float, size_hw: Float) -> Selection:
    rows = _rpn_rows(rpn_boxes)
    candidates = Rows(clip(rows.boxes, size_hw), rows.scores, rows.groups)
    return Selection(candidates, find_boxes(proposals, candidates))


def _kept_rows(selection: Selection, boxes: Float) -> Rows:
    """``boxes`` with the scores and groups of the candidates that were kept; group -1 if a box is no candidate."""
    known = selection.kept != UNMATCHED
    return Rows(
        boxes,
        np.where(known, selection.candidates.scores[selection.kept], 0),
        np.where(known, selection.candidates.groups[selection.kept], -1),
    )


def _detection_selection(
    class_scores: Float, class_boxes: Float, detections: ImageDetections, image_size: Float, bounds: Bounds
) -> Selection:
    num_rois, num_classes = class_scores.shape
    boxes = clip(class_boxes.reshape(-1, 4), image_size[:2])  # [R * K, 4]
    labels = np.tile(np.arange(1, num_classes + 1), num_rois)
    candidates = Rows(boxes, class_scores.reshape(-1), labels)
    ratio_h, ratio_w = image_size[2:] / image_size[:2]
    scaled = boxes * np.array([ratio_w, ratio_h, ratio_w, ratio_h], np.float32)
    found = Rows(detections.boxes, detections.scores, detections.labels)
    kept = find_rows(found, Rows(scaled, candidates.scores, labels), bounds.box_px, bounds.score)
    return Selection(candidates, kept)


def _link_classes(link: Link, num_classes: int) -> Link:
    """The link between proposals as one between their boxes of each class: row r becomes rows r * K + k."""
    classes = np.arange(num_classes)

    def spread(matches: Indices) -> Indices:
        rows = matches[:, None] * num_classes + classes  # [R, K]
        spread_out: Indices = np.where(matches[:, None] == UNMATCHED, UNMATCHED, rows).reshape(-1)
        return spread_out

    return Link(
        Matching(spread(link.matching.a_to_b), spread(link.matching.b_to_a)),
        np.repeat(link.lost_a, num_classes),
        np.repeat(link.lost_b, num_classes),
    )


def _without(link: Link, in_a: Indices, in_b: Indices) -> Link:
    """The link where these rows, paired so far, are no longer comparable, for a reason that was explained."""
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


def _compare_rows(
    comparison: Comparison,
    where: str,
    a: Rows,
    b: Rows,
    bounds_px: npt.NDArray[np.floating],
    matching: Matching,
    only_a: Sequence[Mismatch],
    only_b: Sequence[Mismatch],
) -> None:
    """Adds the pairs' differences, and those of each unexplained row to the row that is nearest to it."""
    in_a, in_b = matching.pairs()
    for mismatch in only_a:
        nearest = nearest_row(
            a.take(np.array([mismatch.row])), b, bounds_px[mismatch.row], comparison.bounds.score
        )
        if nearest is not None and not mismatch.explained and comparison.bounds.explains:
            in_a, in_b = np.append(in_a, mismatch.row), np.append(in_b, nearest)
    comparison.difference("px").add(
        np.abs(a.boxes[in_a] - b.boxes[in_b]).max(axis=1, initial=0), bounds_px[in_a]
    )
    comparison.difference("score").add(np.abs(a.scores[in_a] - b.scores[in_b]), comparison.bounds.score)
    comparison.matched += len(matching.pairs()[0])
    comparison.rows += max(len(a), len(b))
    comparison.count(where, only_a, "torchvision")
    comparison.count(where, only_b, "the pipeline")
