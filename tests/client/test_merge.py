"""Cutting and merging equal those of SAHI, on its recorded results and on values worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from rcnn_client._masks import MaskCrop
from rcnn_client._merge import Merging, group_by_object, merge_boxes, unite_masks
from rcnn_client._tiles import tile_boxes

RECORDED = json.loads((Path(__file__).parent / "sahi" / "recorded.json").read_text())


def merge(boxes, scores, labels, how: Merging) -> list[list[float]]:
    """[label, score, x1, y1, x2, y2] of each object, the best first."""
    boxes, scores = np.array(boxes, np.float32), np.array(scores, np.float32)
    groups = group_by_object(boxes, scores, np.array(labels), how)
    return [
        [labels[members[0]], float(scores[members[0]]), *merge_boxes(boxes, members, how)[0].tolist()]
        for members in groups
    ]


def test_tiles_are_those_of_sahi():
    for case in RECORDED["slices"]:
        found = tile_boxes(case["size_hw"], case["tile_hw"], case["overlap"])
        assert [list(box) for box in found] == case["boxes"], case


def test_merged_detections_are_those_of_sahi():
    for case in RECORDED["merged"]:
        how = Merging(case["method"], case["metric"], case["thresh"])
        objects = merge(**RECORDED["detections"][case["detections"]], how=how)
        assert [each[1] for each in objects] == sorted((each[1] for each in objects), reverse=True)
        np.testing.assert_allclose(sorted(objects), case["objects"], rtol=0, atol=1e-6, err_msg=str(how))


# A chain: each box covers 60% of the next one.
CHAIN = {"boxes": [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], "scores": [0.9, 0.8, 0.7]}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("nms", [[1, 0.9, 0, 0, 10, 10], [1, 0.7, 8, 0, 18, 10]]),
        ("greedy_nmm", [[1, 0.9, 0, 0, 14, 10], [1, 0.7, 8, 0, 18, 10]]),
        ("nmm", [[1, 0.9, 0, 0, 18, 10]]),
    ],
)
def test_a_chain(method, expected):
    found = merge(**CHAIN, labels=[1, 1, 1], how=Merging(method, "ios", 0.5))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_part_matches_the_whole_by_ios_and_not_by_iou():
    pair = {"boxes": [[0, 0, 100, 100], [90, 0, 100, 10]], "scores": [0.9, 0.8], "labels": [1, 1]}
    assert len(merge(**pair, how=Merging("greedy_nmm", "ios", 1.0))) == 1
    assert len(merge(**pair, how=Merging("greedy_nmm", "iou", 0.02))) == 2


def test_classes_are_not_merged():
    pair = {"boxes": [[0, 0, 10, 10], [0, 0, 10, 10]], "scores": [0.5, 0.9]}
    assert [each[0] for each in merge(**pair, labels=[1, 2], how=Merging("nmm", "ios", 0.5))] == [2, 1]


def test_nothing_to_merge():
    for method in ("nms", "greedy_nmm", "nmm"):
        columns = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
        assert group_by_object(*columns, Merging(method, "ios", 0.5)) == []


def test_masks_are_united_at_their_places():
    square = MaskCrop(np.ones((2, 2), np.bool_), top=3, left=4)
    column = MaskCrop(np.ones((3, 1), np.bool_), top=1, left=6)
    empty = MaskCrop(np.zeros((0, 0), np.bool_), top=0, left=0)
    united = unite_masks([square, empty, column])
    assert (united.top, united.left) == (1, 4)
    np.testing.assert_array_equal(united.mask, [[0, 0, 1], [0, 0, 1], [1, 1, 1], [1, 1, 0]])
    assert unite_masks([empty]).mask.size == 0
