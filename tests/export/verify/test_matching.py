"""Rows are paired one to one within their bounds, whatever their order."""

import numpy as np
import pytest
from rcnn_export.verify.matching import UNMATCHED, Rows, find_boxes, find_rows, iou, match_rows


def rows(boxes: list[list[float]], scores: list[float], groups: list[int] | None = None) -> Rows:
    return Rows(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(groups if groups is not None else [0] * len(scores), np.int64),
    )


def match(a: Rows, b: Rows) -> tuple[list[int], list[int]]:
    matching = match_rows(a, b, np.full(len(a), 0.05), 1e-4)
    return matching.a_to_b.tolist(), matching.b_to_a.tolist()


def test_permuted_ties_pair() -> None:
    boxes = [[0, 0, 10, 10], [5, 5, 20, 20], [5, 5, 20, 20], [7, 1, 9, 4]]
    a = rows(boxes, [0.5, 0.5, 0.5, 0.5])
    order = np.array([3, 2, 0, 1])
    a_to_b, b_to_a = match(a, a.take(order))
    assert a_to_b[0] == 2 and a_to_b[3] == 0 and sorted(a_to_b[1:3]) == [1, 3]
    assert [a_to_b[row] for row in b_to_a] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("box", "score", "group", "pairs"),
    [
        ([1.04, 1, 5, 5], 0.5, 0, True),
        ([1.06, 1, 5, 5], 0.5, 0, False),
        ([1, 1, 5, 5], 0.50009, 0, True),
        ([1, 1, 5, 5], 0.50011, 0, False),
        ([1, 1, 5, 5], 0.5, 1, False),
        ([np.nan, 1, 5, 5], 0.5, 0, False),
    ],
)
def test_bounds_and_groups(box: list[float], score: float, group: int, pairs: bool) -> None:
    a_to_b, b_to_a = match(rows([[1, 1, 5, 5]], [0.5]), rows([box], [score], [group]))
    assert (a_to_b, b_to_a) == (([0], [0]) if pairs else ([UNMATCHED], [UNMATCHED]))


def test_no_row_is_left_over_because_a_nearer_one_took_its_place() -> None:
    """Row 0 of a fits both rows of b, and the first one better; row 1 fits only the first."""
    a = rows([[0.02, 0, 9, 9], [-0.04, 0, 9, 9]], [0.5, 0.5])
    b = rows([[0, 0, 9, 9], [0.06, 0, 9, 9]], [0.5, 0.5])
    assert match(a, b) == ([1, 0], [1, 0])


def test_nothing_matches_nothing() -> None:
    assert match(rows([], []), rows([], [])) == ([], [])
    assert match(rows([], []), rows([[0, 0, 1, 1]], [1])) == ([], [UNMATCHED])


def test_box_is_found_among_candidates_best_of_each_group_first() -> None:
    full, other = [0, 0, 8, 8], [1, 1, 2, 2]
    candidates = rows([full, other, full, full, full], [0.7, 0.6, 0.9, 0.8, 0.95], [0, 0, 0, 1, 1])
    boxes = np.array([full, full, other, [0, 0, 8, 8.01], full], np.float32)
    # The best of group 1 is candidate 4, and the best of group 0 is candidate 2; there is no third group.
    assert find_boxes(boxes, candidates).tolist() == [4, 2, 1, UNMATCHED, UNMATCHED]


def test_minus_zero_is_zero() -> None:
    candidates = rows([[-0.0, 0, 8, 8]], [0.5])
    assert find_boxes(np.array([[0, -0.0, 8, 8]], np.float32), candidates).tolist() == [0]


def test_rows_are_found_within_bounds_and_group() -> None:
    candidates = rows([[0, 0, 8, 8], [0, 0, 8, 8.02], [0, 0, 8, 8]], [0.5, 0.5, 0.5], [1, 1, 2])
    wanted = rows([[0, 0, 8, 8.03], [0, 0, 8, 8], [0, 0, 8, 9], [0, 0, 8, 8]], [0.5] * 4, [1, 2, 1, 3])
    assert find_rows(wanted, candidates, 0.05, 1e-4).tolist() == [1, 2, UNMATCHED, UNMATCHED]


def test_iou_by_hand() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [1, 1, 1, 1]], np.float32)
    np.testing.assert_allclose(iou(boxes[0], boxes), [1, 1 / 7, 0, 0])
    assert iou(boxes[3], boxes[[3]]).tolist() == [0]
