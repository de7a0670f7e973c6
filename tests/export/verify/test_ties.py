"""A row that only one side has is explained by the decision that selected or dropped it, and by nothing else.

In every case side a is torchvision and side b is the export. Boxes are 100 pixels high, so that a box of width
w <= 100 and a box of width 100 with the same left edge have IoU w / 100.
"""

import numpy as np
import pytest
from rcnn_export.verify.matching import UNMATCHED, Matching, Rows
from rcnn_export.verify.ties import Link, Selection, SelectionRules, explain_selection, explain_top_k

RULES = SelectionRules(
    score_thresh=0.05, keeps_score_at_thresh=False, nms_thresh=0.5, min_box_size=1e-2, max_kept=100
)
FAR = [1000, 0, 1100, 100]  # overlaps nothing


def wide(width: float) -> list[float]:
    return [0, 0, width, 100]


def candidates(boxes: list[list[float]], scores: list[float], groups: list[int] | None = None) -> Rows:
    return Rows(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(groups or [1] * len(scores), np.int64),
    )


def explain(
    a: Rows,
    b: Rows,
    kept_a: list[int],
    kept_b: list[int],
    rules: SelectionRules = RULES,
    lost_a: tuple[int, ...] = (),
    lost_b: tuple[int, ...] = (),
) -> tuple[dict[int, tuple[bool, str]], dict[int, tuple[bool, str]]]:
    """Candidate i of a is candidate i of b, except for those that are lost or that the other side lacks.

    Returns:
        for each side, by candidate, whether it was explained and why.
    """
    counts = len(a), len(b)
    links = [np.full(count, UNMATCHED) for count in counts]
    for row in range(min(counts)):
        if row not in (*lost_a, *lost_b):
            links[0][row] = links[1][row] = row
    lost = [np.isin(np.arange(count), rows) for count, rows in zip(counts, (lost_a, lost_b), strict=True)]
    common = [row for row in kept_a if row in kept_b and links[0][row] == row]
    matching = Matching(
        np.array([kept_b.index(row) if row in common else UNMATCHED for row in kept_a], np.int64),
        np.array([kept_a.index(row) if row in common else UNMATCHED for row in kept_b], np.int64),
    )
    selections = [Selection(rows, np.array(kept, np.int64)) for rows, kept in ((a, kept_a), (b, kept_b))]
    found = explain_selection(*selections, matching, Link(Matching(*links), *lost), rules)
    only_a, only_b = (
        {kept[mismatch.row]: (mismatch.explained, mismatch.reason) for mismatch in mismatches}
        for kept, mismatches in zip((kept_a, kept_b), found, strict=True)
    )
    return only_a, only_b


def same(boxes: list[list[float]], scores: list[float], groups: list[int] | None = None) -> tuple[Rows, Rows]:
    return candidates(boxes, scores, groups), candidates(boxes, scores, groups)


def test_same_rows_need_no_explanation() -> None:
    assert explain(*same([wide(100), FAR], [0.9, 0.8]), [0, 1], [0, 1]) == ({}, {})


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (50.005, (True, "IoU at the threshold")),
        (49.995, (True, "IoU at the threshold")),
        (50.02, (False, "suppressed (IoU 0.5002) by a row that both sides keep")),
        (60, (False, "suppressed (IoU 0.6000) by a row that both sides keep")),
        (49.98, (False, "dropped without a reason")),
    ],
)
def test_iou_decides(width: float, expected: tuple[bool, str]) -> None:
    rows = same([wide(100), wide(width)], [0.9, 0.8])
    assert explain(*rows, [0, 1], [0]) == ({1: expected}, {})
    assert explain(*rows, [0], [0, 1]) == ({}, {1: expected})


def test_iou_at_the_threshold_on_the_side_that_kept_the_row() -> None:
    """The IoUs of boxes that differ by 0.05 px may differ by more than the tolerance."""
    a = candidates([wide(100), wide(50.005)], [0.9, 0.8])
    b = candidates([wide(100), wide(50.04)], [0.9, 0.8])
    assert explain(a, b, [0, 1], [0])[0][1] == (True, "IoU at the threshold")


def test_another_group_suppresses_nothing() -> None:
    rows = same([wide(100), wide(50.005)], [0.9, 0.8], [1, 2])
    assert explain(*rows, [0, 1], [0])[0][1] == (False, "dropped without a reason")


def test_a_lower_score_suppresses_nothing() -> None:
    rows = same([wide(100), wide(50.005)], [0.8, 0.9])
    assert explain(*rows, [0, 1], [0])[0][1] == (False, "dropped without a reason")


@pytest.mark.parametrize(("gap", "explained"), [(0.0, True), (5e-5, True), (2e-4, False)])
def test_order_of_tied_scores(gap: float, explained: bool) -> None:
    rows = same([wide(100), wide(80)], [0.9, 0.9 - gap])
    only_a, only_b = explain(*rows, [0], [1])
    assert (only_a[0][0], only_b[1][0]) == (explained, explained)
    if explained:
        assert only_a[0][1] == only_b[1][1] == "scores tie"


def test_a_tie_does_not_excuse_keeping_both() -> None:
    rows = same([wide(100), wide(80)], [0.9, 0.9])
    assert explain(*rows, [0, 1], [0])[0][1] == (
        False,
        "suppressed (IoU 0.8000) by a row that both sides keep",
    )


@pytest.mark.parametrize(("score", "explained"), [(0.04995, True), (0.05, True), (0.0498, False)])
def test_score_at_the_threshold(score: float, explained: bool) -> None:
    a, b = candidates([FAR], [0.05005]), candidates([FAR], [score])
    assert explain(a, b, [0], [])[0][0] == (explained, "score at the threshold")


def test_score_above_the_threshold_on_the_side_that_dropped_the_row() -> None:
    assert explain(*same([FAR], [0.05005]), [0], [])[0][0] == (False, "dropped without a reason")


@pytest.mark.parametrize(("width", "explained"), [(0.00995, True), (0.0098, False)])
def test_side_at_the_smallest_size(width: float, explained: bool) -> None:
    a, b = candidates([wide(0.01005)], [0.9]), candidates([wide(width)], [0.9])
    assert explain(a, b, [0], [])[0][0] == (explained, "side at the smallest size")


def test_chain() -> None:
    """b has candidate 0 for a reason upstream. In b it suppresses 1, so 2 stays there; in a, 1 suppresses 2."""
    boxes = [wide(100), wide(80), wide(45)]
    a, b = same(boxes, [0.9, 0.8, 0.7])
    only_a, only_b = explain(a, b, [1], [0, 2], lost_b=(0,))
    assert only_a == {1: (True, "suppressed by an explained row")}
    assert only_b == {0: (True, "explained upstream"), 2: (True, "suppressed by an explained row")}


def test_chain_from_a_row_that_nothing_explains() -> None:
    a, b = same([wide(100), wide(80), wide(45)], [0.9, 0.8, 0.7])
    only_a, only_b = explain(a, b, [1], [0, 2])
    assert not any(explained for explained, _ in (*only_a.values(), *only_b.values()))


def test_every_suppressor_needs_an_excuse() -> None:
    """Candidate 2 is suppressed by an explained row and by a row that both sides keep."""
    a, b = same([wide(100), [30, 0, 100, 100], [20, 0, 100, 100]], [0.9, 0.85, 0.8])
    rules = SelectionRules(0.05, False, 0.75, 1e-2, 100)
    only_a, _ = explain(a, b, [1, 2], [0, 1], rules, lost_b=(0,))
    assert only_a[2] == (False, "suppressed (IoU 0.8750) by a row that both sides keep")


def spread(count: int) -> list[list[float]]:
    return [[200 * index, 0, 200 * index + 100, 100] for index in range(count)]


def test_displaced_by_as_many_explained_rows() -> None:
    rules = SelectionRules(0.05, False, 0.5, 1e-2, max_kept=3)
    rows = same(spread(5), [0.9, 0.8, 0.7, 0.6, 0.5])
    only_a, only_b = explain(*rows, [1, 2, 3], [0, 1, 2], rules, lost_b=(0,))
    assert only_a == {3: (True, "displaced by explained rows")}
    assert only_b == {0: (True, "explained upstream")}


def test_displaced_by_fewer_explained_rows() -> None:
    """One extra row cannot displace two rows; only the better of them counts as displaced."""
    rules = SelectionRules(0.05, False, 0.5, 1e-2, max_kept=2)
    rows = same(spread(4), [0.9, 0.8, 0.7, 0.6])
    only_a, _ = explain(*rows, [2, 3], [0, 1], rules, lost_b=(0,))
    assert only_a[2] == (True, "displaced by explained rows")
    assert only_a[3] == (False, "displaced by explained rows")


def test_a_list_that_is_not_full_displaces_nothing() -> None:
    rows = same(spread(3), [0.9, 0.8, 0.7])
    only_a, _ = explain(*rows, [1, 2], [0, 1], lost_b=(0,))
    assert only_a[2] == (False, "dropped without a reason")


@pytest.mark.parametrize(("gap", "explained"), [(5e-5, True), (2e-4, False)])
def test_score_at_the_cut(gap: float, explained: bool) -> None:
    rules = SelectionRules(0.05, False, 0.5, 1e-2, max_kept=2)
    rows = same(spread(3), [0.9, 0.8, 0.8 - gap])
    only_a, only_b = explain(*rows, [0, 2], [0, 1], rules)
    assert only_a[2][0] is explained and only_b[1][0] is explained


def test_kept_by_both_but_not_the_same() -> None:
    a, b = candidates([FAR], [0.9]), candidates([FAR], [0.5])
    selections = [Selection(rows, np.array([0])) for rows in (a, b)]
    unmatched = Matching(np.array([UNMATCHED]), np.array([UNMATCHED]))
    for mismatches in explain_selection(*selections, unmatched, Link.identity(1), RULES):
        assert not mismatches[0].explained
        assert mismatches[0].reason == "kept by both sides, but beyond the bounds"


def test_a_row_from_nowhere() -> None:
    assert explain(*same([FAR], [0.9]), [], [UNMATCHED])[1][UNMATCHED] == (
        False,
        "is none of the stage's inputs",
    )


def test_a_source_that_the_other_side_lacks() -> None:
    a, b = candidates([FAR, wide(100)], [0.9, 0.8]), candidates([FAR], [0.9])
    assert explain(a, b, [0, 1], [0])[0][1] == (False, "its source is missing on the other side")
    assert explain(a, b, [0, 1], [0], lost_a=(1,))[0][1] == (True, "explained upstream")


@pytest.mark.parametrize(
    ("score", "k", "explained"), [(0.70005, 2, True), (0.7002, 2, False), (0.70005, 3, False)]
)
def test_top_k(score: float, k: int, explained: bool) -> None:
    """Row 1 of a is on level 0, where b's lowest score is 0.7. b's level 1 and levels that are not full do not matter."""
    a = candidates([FAR, wide(100), FAR], [0.9, score, 0.6], [0, 0, 1])
    b = candidates([FAR, wide(50), FAR], [0.9, 0.7, 0.6], [0, 0, 1])
    matching = Matching(np.array([0, UNMATCHED, 2]), np.array([0, UNMATCHED, 2]))
    only_a, only_b = explain_top_k(a, b, matching, k)
    assert [(mismatch.row, mismatch.explained) for mismatch in (*only_a, *only_b)] == [(1, explained)] * 2
