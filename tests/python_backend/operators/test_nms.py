"""Greedy NMS keeps the same indices in the same order as torchvision."""

import numpy as np
import pytest
import torch
import torchvision
from rcnn_backend.operators.nms import batched_nms


def random_boxes(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 200, (count, 2))
    return np.concatenate([corner, corner + random.uniform(1, 80, (count, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 50, 1001, 3000])
def test_equals_torchvision(count: int) -> None:
    boxes = random_boxes(count, seed=count)
    random = np.random.default_rng(count)
    scores = random.permutation(count).astype(np.float32) / count
    groups = random.integers(0, 5, count)
    kept = batched_nms(boxes, scores, groups, 0.5)
    expected = np.empty(0, int)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        group_kept = torchvision.ops.nms(
            torch.from_numpy(boxes[members]), torch.from_numpy(scores[members]), 0.5
        )
        expected = np.append(expected, members[group_kept.numpy()])
    np.testing.assert_array_equal(kept, expected[np.argsort(-scores[expected], kind="stable")])


def test_a_suppressed_box_suppresses_nothing() -> None:
    # The IoU of neighbours is 1/3, that of the outer two is 0: the first removes the second, so the third stays.
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    np.testing.assert_array_equal(batched_nms(boxes, scores, np.zeros(3, int), 0.3), [0, 2])
    np.testing.assert_array_equal(batched_nms(boxes, scores, np.array([0, 1, 0]), 0.3), [0, 1, 2])


def test_iou_equal_to_the_threshold_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # IoU exactly 0.5
    np.testing.assert_array_equal(
        batched_nms(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, int), 0.5), [0, 1]
    )


def test_the_threshold_is_compared_as_torchvision_does() -> None:
    # An IoU of 3/10 in FP32 is above 0.3, so torchvision suppresses the box; 7/10 in FP32 is below 0.7.
    for width, threshold, kept in [(3, 0.3, [0]), (7, 0.7, [0, 1]), (3, 0.0, [0]), (10, 1.0, [0, 1])]:
        boxes, scores = np.array([[0, 0, 10, 1], [0, 0, width, 1]], np.float32), np.array([2, 1], np.float32)
        expected = torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
        np.testing.assert_array_equal(expected, kept)
        np.testing.assert_array_equal(batched_nms(boxes, scores, np.zeros(2, int), threshold), kept)


def test_without_overlap_a_threshold_of_zero_suppresses_nothing() -> None:
    # Two boxes that touch, and one without area.
    boxes = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [5, 5, 5, 5]], np.float32)
    kept = batched_nms(boxes, np.array([3, 2, 1], np.float32), np.zeros(3, int), 0.0)
    np.testing.assert_array_equal(kept, [0, 1, 2])


def test_groups_of_very_different_sizes_and_any_scores() -> None:
    boxes = random_boxes(300, seed=7)
    groups = np.where(np.arange(300) < 290, 3, np.arange(300)) - 5  # one large group, ten of one box
    scores = np.random.default_rng(7).standard_normal(300).astype(np.float32) * 1e30
    kept = batched_nms(boxes, scores, groups, 0.4)
    large = torchvision.ops.nms(torch.from_numpy(boxes[:290]), torch.from_numpy(scores[:290]), 0.4).numpy()
    expected = np.append(large, np.arange(290, 300))
    np.testing.assert_array_equal(kept, expected[np.argsort(-scores[expected], kind="stable")])


def test_ties_keep_the_order_of_the_input() -> None:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 10]], np.float32)
    scores = np.full(3, 0.5, np.float32)
    np.testing.assert_array_equal(batched_nms(boxes, scores, np.zeros(3, int), 0.5), [0, 1])
    np.testing.assert_array_equal(batched_nms(boxes, scores, np.array([2, 1, 0]), 0.5), [0, 1, 2])


def test_no_box() -> None:
    empty = np.empty((0, 4), np.float32)
    assert batched_nms(empty, empty[:, 0], np.empty(0, int), 0.5).shape == (0,)
