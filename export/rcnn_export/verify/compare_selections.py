"""Compares a step's selection with torchvision's: anchors, proposals, detections.

Arguments, and links between rows, are as in compare.py.
"""

from collections.abc import Sequence
from dataclasses import replace

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


def compare_rpn_boxes(
    comparison: Comparison, where: str, reference: Float, exported: Float, size_hw: Float, top_n: int
) -> Link:
    """The best anchors of each level, [N, 6] on each side.

    The exponential of an untrained network's outputs can make boxes, and their differences, many times as large as the
    picture. The next step clips the boxes. So a pair out of bounds is explained if the clipped boxes are within bounds.
    """
    a, b = _rpn_rows(reference), _rpn_rows(exported)
    bounds = comparison.bounds.boxes_px(a.boxes)
    matching = match_rows(a, b, bounds, comparison.bounds.score)
    if comparison.bounds.explains:
        a, b, matching = _match_in_picture(comparison, a, b, matching, size_hw)
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
    """The ``proposals`` [R, 4] of each side that remain of its ``rpn_boxes`` [N, 6] after NMS."""
    a, b = (
        _proposal_selection(rows, boxes, size_hw) for rows, boxes in zip(rpn_boxes, proposals, strict=True)
    )
    rows_a, rows_b = _kept_rows(a, proposals[0]), _kept_rows(b, proposals[1])
    bounds = comparison.bounds.boxes_px(rpn_boxes[0][a.kept, 1:5])
    matching = match_rows(rows_a, rows_b, bounds, comparison.bounds.score)
    only_a, only_b = explain_selection(a, b, matching, link, rules)
    _compare_rows(comparison, where, rows_a, rows_b, bounds, matching, only_a, only_b)
    return link_rows(matching, only_a, only_b)


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


def clip(boxes: Float, size_hw: Float) -> Float:
    """torchvision's ``clip_boxes_to_image``, for boxes [n, 4]."""
    height, width = size_hw
    return boxes.clip(0, np.array([width, height, width, height], np.float32))


def _rpn_rows(rpn_boxes: Float) -> Rows:
    return Rows(rpn_boxes[:, 1:5], rpn_boxes[:, 0], rpn_boxes[:, 5].astype(np.int64))


def _match_in_picture(
    comparison: Comparison, a: Rows, b: Rows, matching: Matching, size_hw: Float
) -> tuple[Rows, Rows, Matching]:
    """Also pairs rows that are within bounds after clipping; the boxes of these rows are returned clipped."""
    in_a, in_b = (np.flatnonzero(each == UNMATCHED) for each in (matching.a_to_b, matching.b_to_a))
    rest_a, rest_b = (replace(rows, boxes=clip(rows.boxes, size_hw)) for rows in (a.take(in_a), b.take(in_b)))
    bounds = comparison.bounds
    pairs_a, pairs_b = match_rows(rest_a, rest_b, bounds.boxes_px(rest_a.boxes), bounds.score).pairs()
    if len(pairs_a):
        comparison.explained["the same inside the picture"] += len(pairs_a)
    boxes_a, boxes_b = a.boxes.copy(), b.boxes.copy()
    a_to_b, b_to_a = matching.a_to_b.copy(), matching.b_to_a.copy()
    rows_a, rows_b = in_a[pairs_a], in_b[pairs_b]
    boxes_a[rows_a], boxes_b[rows_b] = rest_a.boxes[pairs_a], rest_b.boxes[pairs_b]
    a_to_b[rows_a], b_to_a[rows_b] = rows_b, rows_a
    return replace(a, boxes=boxes_a), replace(b, boxes=boxes_b), Matching(a_to_b, b_to_a)


def _proposal_selection(rpn_boxes: Float, proposals: Float, size_hw: Float) -> Selection:
    rows = _rpn_rows(rpn_boxes)
    candidates = Rows(clip(rows.boxes, size_hw), rows.scores, rows.groups)
    return Selection(candidates, find_boxes(proposals, candidates))


def _kept_rows(selection: Selection, boxes: Float) -> Rows:
    """``boxes`` with the scores and groups of the candidates that were kept; group -1 if a box is not a candidate."""
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
    """Adds the pairs' differences, and the difference between each unexplained row and the row nearest to it."""
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
