"""Why one side of a comparison kept a row that the other did not: a near tie, or an error.

Two runs that differ by rounding may decide differently if a decision depends on less than
TOLERANCE. For each stage that selects rows (top-k, score threshold, NMS, the best n), the
values of the other side show why it dropped a row. The row is explained only if the deciding
value is within TOLERANCE of its threshold, or if the row was dropped because of another row
that is itself explained.

Boxes are (x1, y1, x2, y2) in pixels, clipped to the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rcnn_export.verify.matching import UNMATCHED, Indices, Mask, Matching, Rows, iou

# How near a score, an IoU or (in pixels) a box side must be to its threshold.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class SelectionRules:
    """How a stage selects: torchvision's filter_proposals and postprocess_detections."""

    score_thresh: float
    keeps_score_at_thresh: bool
    nms_thresh: float
    min_box_size: float  # pixels
    max_kept: int  # rows, the best ones


@dataclass(frozen=True)
class Selection:
    """The candidates that one side chose from, and for each row that it kept the candidate's index, or UNMATCHED."""

    candidates: Rows
    kept: Indices


@dataclass(frozen=True)
class Link:
    """Which rows of one image on both sides correspond to each other.

    A row that is ``lost`` has no counterpart, or no comparable one, for a reason that an
    earlier stage has explained.
    """

    matching: Matching
    lost_a: Mask
    lost_b: Mask

    @staticmethod
    def identity(count: int) -> "Link":
        """Both sides have the same rows."""
        return Link(Matching.identity(count), np.zeros(count, bool), np.zeros(count, bool))


@dataclass
class Mismatch:
    """A row that only one side has."""

    row: int
    explained: bool
    reason: str


def link_rows(matching: Matching, only_a: Sequence[Mismatch], only_b: Sequence[Mismatch]) -> Link:
    """The link for the next stage, from the matched and explained rows of this one."""
    lost_a, lost_b = np.zeros(len(matching.a_to_b), bool), np.zeros(len(matching.b_to_a), bool)
    lost_a[[mismatch.row for mismatch in only_a if mismatch.explained]] = True
    lost_b[[mismatch.row for mismatch in only_b if mismatch.explained]] = True
    return Link(matching, lost_a, lost_b)


def explain_top_k(a: Rows, b: Rows, matching: Matching, k: int) -> tuple[list[Mismatch], list[Mismatch]]:
    """Explains the unmatched rows of a selection that keeps each group's ``k`` best scores."""
    return _only_in_top_k(a, b, matching.a_to_b, k), _only_in_top_k(b, a, matching.b_to_a, k)


def _only_in_top_k(own: Rows, other: Rows, matches: Indices, k: int) -> list[Mismatch]:
    mismatches = []
    for row in np.flatnonzero(matches == UNMATCHED).tolist():
        rivals = other.scores[other.groups == own.groups[row]]
        if len(rivals) < k:
            mismatches.append(Mismatch(row, False, "the other side keeps all of this level, but not this"))
        elif abs(float(own.scores[row]) - float(rivals.min())) <= TOLERANCE:
            mismatches.append(Mismatch(row, True, "score at the cut"))
        else:
            mismatches.append(Mismatch(row, False, "no such row, and its score is not at the cut"))
    return mismatches


def explain_selection(
    a: Selection, b: Selection, kept: Matching, candidates: Link, rules: SelectionRules
) -> tuple[list[Mismatch], list[Mismatch]]:
    """Explains the unmatched kept rows of both sides.

    Args:
        a: the reference's selection.
        b: the export's selection.
        kept: pairs the kept rows.
        candidates: links the candidates; ``Link.identity`` if they are the same.
        rules: how both select.
    """
    side_a = _Side(a, kept.a_to_b, candidates.matching.a_to_b, candidates.lost_a)
    side_b = _Side(b, kept.b_to_a, candidates.matching.b_to_a, candidates.lost_b)
    causes_a = {row: _cause(row, side_a, side_b, rules) for row in side_a.unmatched()}
    causes_b = {row: _cause(row, side_b, side_a, rules) for row in side_b.unmatched()}
    _follow_chains(causes_a, causes_b)
    _count_displaced(causes_a, causes_b, side_a)
    _count_displaced(causes_b, causes_a, side_b)
    return _mismatches(causes_a), _mismatches(causes_b)


@dataclass(frozen=True)
class _Side:
    selection: Selection
    matches: Indices  # of each kept row, the kept row of the other side
    counterparts: Indices  # of each candidate, the candidate of the other side
    lost: Mask  # of each candidate

    def unmatched(self) -> list[int]:
        rows: list[int] = np.flatnonzero(self.matches == UNMATCHED).tolist()
        return rows

    def known(self) -> Indices:
        """The kept rows whose candidate is known."""
        return np.flatnonzero(self.selection.kept != UNMATCHED)


@dataclass
class _Cause:
    """Why a row is missing on the other side.

    ``needs``: rows of the other side; if all of them are explained, this row is explained, too. ``displaced``: other rows
    took the row's place in the list, so it is explained if an explained row took the place.
    """

    reason: str
    explained: bool = False
    needs: Sequence[int] = ()
    displaced: bool = False


def _cause(row: int, own: _Side, other: _Side, rules: SelectionRules) -> _Cause:
    """Why ``other`` did not keep the row that ``own`` kept, judged by the values of ``other``."""
    candidate = int(own.selection.kept[row])
    if candidate == UNMATCHED:
        return _Cause("is none of the stage's inputs")
    if own.lost[candidate]:
        return _Cause("explained upstream", explained=True)
    counterpart = int(own.counterparts[candidate])
    if counterpart == UNMATCHED:
        return _Cause("its source is missing on the other side")
    if counterpart in other.selection.kept:
        return _Cause("kept by both sides, but beyond the bounds")

    rivals = other.selection.candidates
    score, box = float(rivals.scores[counterpart]), rivals.boxes[counterpart]
    score_thresh = float(np.float32(rules.score_thresh))
    if score < score_thresh or (score == score_thresh and not rules.keeps_score_at_thresh):
        return _Cause("score at the threshold", explained=score_thresh - score <= TOLERANCE)
    side = float((box[2:] - box[:2]).min())
    if side < rules.min_box_size:
        return _Cause("side at the smallest size", explained=rules.min_box_size - side <= TOLERANCE)

    suppressors = _suppressors(counterpart, other, rules)
    if len(suppressors):
        return _suppressed(candidate, counterpart, suppressors, own, other, rules)
    if len(other.selection.kept) >= rules.max_kept:
        cut = float(rivals.scores[other.selection.kept[other.known()]].min())
        if abs(score - cut) <= TOLERANCE:
            return _Cause("score at the cut", explained=True)
        if score < cut:
            return _Cause("displaced by explained rows", displaced=True)
    return _Cause("dropped without a reason")


def _suppressors(candidate: int, side: _Side, rules: SelectionRules) -> Indices:
    """The kept rows that may have suppressed a candidate of the same side, within TOLERANCE."""
    rows, kept = side.known(), side.selection.kept
    candidates = side.selection.candidates
    rows = rows[candidates.groups[kept[rows]] == candidates.groups[candidate]]
    rows = rows[candidates.scores[kept[rows]] >= candidates.scores[candidate] - TOLERANCE]
    ious = iou(candidates.boxes[candidate], candidates.boxes[kept[rows]])
    suppressors: Indices = rows[ious > rules.nms_thresh - TOLERANCE]
    return suppressors


def _suppressed(
    candidate: int,
    counterpart: int,
    suppressors: Indices,
    own: _Side,
    other: _Side,
    rules: SelectionRules,
) -> _Cause:
    """Explains, for each row that may have suppressed the counterpart, why it did not do so on this side."""
    ours, theirs = own.selection.candidates, other.selection.candidates
    reason, needs = "IoU at the threshold", []
    for row in suppressors.tolist():
        rival = int(other.selection.kept[row])
        overlaps = [float(iou(theirs.boxes[counterpart], theirs.boxes[[rival]])[0])]
        rival_here = int(other.counterparts[rival])
        if rival_here != UNMATCHED:
            overlaps.append(float(iou(ours.boxes[candidate], ours.boxes[[rival_here]])[0]))
        if any(abs(overlap - rules.nms_thresh) <= TOLERANCE for overlap in overlaps):
            continue
        if other.matches[row] != UNMATCHED:
            return _Cause(f"suppressed (IoU {overlaps[0]:.4f}) by a row that both sides keep")
        if abs(float(theirs.scores[rival]) - float(theirs.scores[counterpart])) <= TOLERANCE:
            reason = "scores tie"
        else:
            reason = "suppressed by an explained row"
            needs.append(row)
    return _Cause(reason, explained=not needs, needs=needs)


def _follow_chains(causes_a: dict[int, _Cause], causes_b: dict[int, _Cause]) -> None:
    """Explains the rows that were suppressed by explained rows, until no more are found."""
    found = True
    while found:
        found = False
        for causes, others in ((causes_a, causes_b), (causes_b, causes_a)):
            for cause in causes.values():
                if not cause.explained and cause.needs and all(others[row].explained for row in cause.needs):
                    cause.explained = found = True


def _count_displaced(causes: dict[int, _Cause], others: dict[int, _Cause], own: _Side) -> None:
    """Explains as many displaced rows, best first, as there are explained rows that took their places."""
    places = sum(cause.explained and not cause.displaced for cause in others.values())
    displaced = [row for row, cause in causes.items() if cause.displaced]
    scores = own.selection.candidates.scores[own.selection.kept[displaced]]
    for row in np.array(displaced)[np.argsort(-scores, kind="stable")][:places].tolist():
        causes[row].explained = True


def _mismatches(causes: dict[int, _Cause]) -> list[Mismatch]:
    return [Mismatch(row, cause.explained, cause.reason) for row, cause in causes.items()]
