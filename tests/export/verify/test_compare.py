"""Which differences are within bounds or explained, and that neither hides an error."""

import numpy as np
import pytest
from rcnn_export.engines.precision import FP16, FP32, Bounds
from rcnn_export.verify.compare import PyramidScale, compare_array, compare_header, compare_pooled
from rcnn_export.verify.compare_heads import compare_keypoints, compare_maps
from rcnn_export.verify.compare_selections import compare_detections, compare_proposals, compare_rpn_boxes
from rcnn_export.verify.differences import Comparison
from rcnn_export.verify.matching import UNMATCHED
from rcnn_export.verify.reference import Float, ImageDetections
from rcnn_export.verify.ties import Link, SelectionRules

RULES = SelectionRules(
    score_thresh=0.05, keeps_score_at_thresh=False, nms_thresh=0.5, min_box_size=1e-2, max_kept=100
)
PYRAMID = PyramidScale(np.array([112.0, 224.0]), finest_stride_px=4, largest_feature=2.0)


def array(values: object) -> Float:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("exported", "holds"), [(100.0009, True), (100.0011, False), (np.nan, False), (np.inf, False)]
)
def test_array_is_relative_to_the_largest_magnitude(exported: float, holds: bool) -> None:
    comparison = Comparison()
    compare_array(comparison, "picture", array([-100, 1]), array([-100, 1]))
    compare_array(comparison, "picture", array([-100, 1]), array([-exported, 1]))
    assert comparison.holds is holds


def test_array_of_another_shape() -> None:
    comparison = Comparison()
    compare_array(comparison, "batch 0, picture 1", np.zeros((2, 3)), np.zeros((2, 4)))
    assert comparison.unexplained == ["batch 0, picture 1: shape [2, 4], torchvision's is [2, 3]"]
    assert not comparison.holds


def test_bound_of_a_box_grows_with_its_size() -> None:
    boxes = array([[0, 0, 100, 50], [-20000, 0, 5000, 50]])
    np.testing.assert_allclose(FP32.bounds.boxes_px(boxes), [FP32.bounds.box_px, 0.25])


def test_a_row_that_nothing_explains_shows_how_far_the_nearest_is() -> None:
    comparison = Comparison()
    reference = array([[0.9, 0, 0, 50, 50, 0], [0.8, 100, 0, 150, 50, 0]])
    exported = array([[0.9, 0, 0, 50, 50, 0], [0.8, 103, 0, 150, 50, 0]])
    link = compare_rpn_boxes(comparison, "picture", reference, exported, array([100, 200]), 1000)
    assert not comparison.holds and comparison.matched == 1 and comparison.rows == 2
    assert comparison.difference("px").largest == 3
    assert link.matching.a_to_b.tolist() == [0, UNMATCHED] and not link.lost_a.any()


@pytest.mark.parametrize(("top", "holds"), [(5.04, True), (5.06, False)])
def test_rows_that_differ_only_beyond_the_picture_are_explained(top: float, holds: bool) -> None:
    """The box is 10,000 pixels wide, so a difference of 0.1 pixels is allowed; its left edge differs by 0.2."""
    comparison = Comparison()
    reference = array([[0.9, 0, 0, 50, 50, 0], [0.8, -5000, 5, 5000, 50, 0]])
    exported = array([[0.9, 0, 0, 50, 50, 0], [0.8, -5000.2, top, 5000, 50, 0]])
    link = compare_rpn_boxes(comparison, "picture", reference, exported, array([100, 200]), 1000)
    assert comparison.holds is holds
    assert dict(comparison.explained) == ({"the same inside the picture": 1} if holds else {})
    assert link.matching.a_to_b.tolist() == [0, 1 if holds else UNMATCHED]


def test_proposals_follow_the_links_of_the_rpn_boxes() -> None:
    """Row 1 of torchvision is at the cut of the RPN's top 2, and the other side lacks it."""
    reference = array([[0.9, 0, 0, 50, 50, 0], [0.8, 100, 0, 150, 50, 0]])
    exported = array([[0.9, 0, 0, 50, 50, 0], [0.79995, 200, 0, 250, 50, 0]])
    link = compare_rpn_boxes(Comparison(), "picture", reference, exported, array([60, 300]), 2)
    assert link.lost_a.tolist() == link.lost_b.tolist() == [False, True]
    comparison = Comparison()
    proposals = reference[:, 1:5], exported[:, 1:5]
    size_hw = array([60, 300])
    link = compare_proposals(comparison, "picture", (reference, exported), proposals, size_hw, link, RULES)
    assert comparison.holds and comparison.matched == 1
    assert comparison.explained == {"explained upstream": 2}
    assert link.lost_a.tolist() == [False, True]


def pooled_comparison(box: list[float], other: list[float], difference: float) -> tuple[Comparison, Link]:
    comparison = Comparison()
    pooled = np.ones((1, 1, 2, 2), np.float32)
    link = compare_pooled(
        comparison,
        (pooled, pooled + np.float32(difference)),
        (array([box]), array([other])),
        Link.identity(1),
        PYRAMID,
    )
    return comparison, link


@pytest.mark.parametrize(
    ("side", "explained"), [(112.0, True), (224.01, True), (111.98, False), (448.0, False)]
)
def test_the_level_of_a_roi_may_change_only_at_a_boundary(side: float, explained: bool) -> None:
    box = [0, 0, side, side]
    comparison, link = pooled_comparison(box, box, 0.5)
    assert comparison.holds is explained
    assert comparison.explained.total() == explained
    assert link.matching.a_to_b.tolist() == ([UNMATCHED] if explained else [0])
    assert link.lost_a.tolist() == [explained]


@pytest.mark.parametrize(("difference", "holds"), [(0.0019, True), (0.0022, False)])
def test_features_may_differ_in_proportion_to_their_roi(difference: float, holds: bool) -> None:
    """For a move of 0.001 px at stride 4 with features up to 2, the limit is 4 * 0.001 / 4 * 2 = 0.002."""
    comparison, _ = pooled_comparison([0, 0, 50, 50], [0, 0, 50.001, 50], difference)
    assert comparison.holds is holds


def test_header_compares_linked_rows_only() -> None:
    link = Link.identity(2)
    link.matching.a_to_b[1] = link.matching.b_to_a[1] = UNMATCHED
    scores = array([[0.5], [0.1]]), array([[0.50009], [0.9]])
    boxes = np.zeros((2, 1, 4), np.float32), np.zeros((2, 1, 4), np.float32)
    boxes[1][1] += 7
    comparison = Comparison()
    compare_header(comparison, scores, boxes, link)
    assert comparison.holds and comparison.matched == 1
    boxes[1][0] += 0.06
    compare_header(comparison, scores, boxes, link)
    assert not comparison.holds


@pytest.mark.parametrize(
    ("score", "label", "shift", "holds"),
    [(0.9, 2, 0.04, True), (0.9, 2, 0.06, False), (0.9002, 2, 0, False), (0.9, 1, 0, False)],
)
def test_detections(score: float, label: int, shift: float, holds: bool) -> None:
    """One proposal and two classes; the picture is twice as large as after resizing."""
    class_scores = array([[0.01, 0.9]])
    class_boxes = array([[[0, 0, 10, 10], [20, 20, 40, 40]]])
    expected = ImageDetections(array([[40, 40, 80, 80]]), array([0.9]), np.array([2]))
    found = ImageDetections(array([[40 + shift, 40, 80, 80]]), array([score]), np.array([label]))
    comparison = Comparison()
    compare_detections(
        comparison,
        "picture",
        (class_scores, class_scores),
        (class_boxes, class_boxes),
        (expected, found),
        array([50, 50, 100, 100]),
        Link.identity(1),
        RULES,
    )
    assert comparison.holds is holds
    assert comparison.matched == holds


def test_no_proposals_and_no_detections() -> None:
    nothing = ImageDetections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    empty = np.zeros((0, 4), np.float32)
    rpn_boxes = array([[0.9, 0, 0, 50, 50, 0]])
    comparison = Comparison()
    link = compare_proposals(
        comparison, "picture", (rpn_boxes, rpn_boxes), (empty, empty), array([9, 9]), Link.identity(1), RULES
    )
    pooled = np.zeros((0, 4, 7, 7), np.float32)
    link = compare_pooled(comparison, (pooled, pooled), (empty, empty), link, PYRAMID)
    scores, boxes = np.zeros((0, 3), np.float32), np.zeros((0, 3, 4), np.float32)
    compare_header(comparison, (scores, scores), (boxes, boxes), link)
    compare_detections(
        comparison,
        "picture",
        (scores, scores),
        (boxes, boxes),
        (nothing, nothing),
        array([9, 9, 9, 9]),
        link,
        RULES,
    )
    assert comparison.holds and comparison.rows == 0


def test_fp16_counts_rows_and_explains_none() -> None:
    """Nine of ten rows must match: of 20 rows, 18 are enough and 17 are not. Shapes must always match."""
    comparison = Comparison(FP16.bounds, matched=18, rows=20, unexplained=["two rows"])
    assert comparison.holds
    comparison.matched = 17
    assert not comparison.holds
    wrong = Comparison(FP16.bounds)
    compare_array(wrong, "picture 0", array([[1.0, 2]]), array([[1.0]]))
    assert not wrong.holds


def moved_header(bounds: Bounds, torchvision_boxes: Float | None) -> tuple[Comparison, Link]:
    """The box of one of ten RoIs differs by 4 px; for that RoI torchvision's header gives ``torchvision_boxes``."""
    comparison = Comparison(bounds)
    scores, boxes = np.zeros((10, 1), np.float32), np.tile(array([0, 0, 9, 9]), (10, 1, 1))
    moved = boxes.copy()
    moved[3, 0, 2] += 4

    def header(rois: np.ndarray) -> tuple[Float, Float]:
        assert rois.tolist() == [3] and torchvision_boxes is not None
        return scores[rois], torchvision_boxes

    given = None if torchvision_boxes is None else header
    return comparison, compare_header(comparison, (scores, scores), (boxes, moved), Link.identity(10), given)


def test_a_header_row_out_of_bounds_needs_an_explanation() -> None:
    """It is explained if torchvision's header agrees on the exported RoI, but not if both sides had the same RoI."""
    comparison, link = moved_header(FP32.bounds, array([[[0, 0, 13.04, 9]]]))
    assert comparison.holds and (comparison.matched, comparison.rows) == (9, 10)
    assert comparison.explained == {"both headers agree on the exported RoI": 1}
    assert (
        np.flatnonzero(link.lost_a).tolist()
        == np.flatnonzero(link.matching.b_to_a == UNMATCHED).tolist()
        == [3]
    )
    for torchvision_boxes in (array([[[0, 0, 13.06, 9]]]), array([[[0, 0, np.nan, 9]]]), None):
        comparison, link = moved_header(FP32.bounds, torchvision_boxes)
        assert not comparison.holds and not link.lost_a.any()


def test_in_fp16_a_header_row_out_of_bounds_is_a_mismatch_only_if_its_roi_differed() -> None:
    comparison, _ = moved_header(FP16.bounds, array([[[0, 0, 9, 9]]]))
    assert comparison.holds and comparison.matched == 9
    comparison, _ = moved_header(FP16.bounds, None)
    assert not comparison.holds and comparison.matched == 10


def keypoints(x: float, score: float) -> dict[str, Float]:
    """Two detections of one keypoint; the second is the same on both sides."""
    return {
        "keypoints": array([[[x, 20, 1]], [[5, 5, 1]]]),
        "keypoint_scores": array([[score], [2]]),
    }


@pytest.mark.parametrize(
    ("x", "score", "holds", "explained"),
    [
        (10.04, 8, True, {}),
        (13, 8.005, True, {"tie of the heatmap": 1}),  # two maxima of the same height
        (13, 8.02, False, {}),  # the higher maximum was missed
        (10, 8.02, False, {}),
        (np.nan, 8, False, {}),
        (10, np.nan, False, {}),
    ],
)
def test_a_keypoint_may_move_to_a_maximum_of_the_same_height(
    x: float, score: float, holds: bool, explained: dict[str, int]
) -> None:
    comparison = Comparison()
    compare_keypoints(comparison, (keypoints(10, 8), keypoints(x, score)), Link.identity(2), 0.01)
    assert comparison.holds is holds
    assert comparison.explained == explained


@pytest.mark.parametrize(("x", "holds"), [(13, True), (16, False)])
def test_a_keypoint_may_be_where_torchvision_finds_it_in_the_exported_heatmap(x: float, holds: bool) -> None:
    comparison, asked = Comparison(), []

    def torchvisions(rows: np.ndarray) -> dict[str, Float]:
        asked.extend(rows.tolist())
        return {name: values[rows] for name, values in keypoints(13, 9).items()}

    compare_keypoints(comparison, (keypoints(10, 8), keypoints(x, 9)), Link.identity(2), 0.01, torchvisions)
    assert asked == [0]
    assert comparison.holds is holds
    reason = "torchvision finds it there in the exported heatmap"
    assert comparison.explained == ({reason: 1} if holds else {})


@pytest.mark.parametrize(("agrees", "holds"), [(True, True), (False, False), (None, False)])
def test_a_map_out_of_bounds_needs_torchvisions_head_to_agree(agrees: bool | None, holds: bool) -> None:
    reference, exported = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.float32)
    exported[1, 2, 3] = 0.5
    comparison = Comparison()
    head = None if agrees is None else lambda rows: exported[rows] if agrees else reference[rows]
    compare_maps(comparison, (reference, exported), Link.identity(2), 0.1, head)
    assert comparison.holds is holds
