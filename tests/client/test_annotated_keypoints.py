"""Keypoints in COCO files: one rule for each irregularity. The tests write all files themselves."""

import json

import numpy as np
import pytest
from rcnn_client.tools.annotations import NotAnnotatedError, read_annotations

POINTS = [2, 1, 2, 5, 3, 1, 0, 0, 0]  # visible, hidden, not labelled


@pytest.fixture
def read(tmp_path):
    """Writes and reads keypoints of objects, all with the box from (2, 1) to (6, 5), in a picture of 8x6 px."""

    def write_and_read(*objects, **fields):
        record = {"image_id": 1, "category_id": 1, "bbox": [2, 1, 4, 4], **fields}
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [
                {**record, "id": number, "keypoints": each} for number, each in enumerate(objects)
            ],
        }
        path = tmp_path / "a.json"
        path.write_text(json.dumps(content))
        return read_annotations(path)

    return write_and_read


def test_x_y_and_visibility_of_each(read):
    annotations = read(POINTS).with_keypoints()
    assert annotations.keypoints.tolist() == [[[2, 1, 2], [5, 3, 1], [0, 0, 0]]]
    assert annotations.num_keypoints == 3
    (record,) = annotations.records()
    assert record["keypoints"] == POINTS and record["num_keypoints"] == 2


@pytest.mark.parametrize("unlabelled", [None, [], [0] * 9, [0] * 51, [9, 9, 0] * 3])
def test_an_object_without_labelled_keypoints_keeps_its_box(read, unlabelled):
    annotations = read(POINTS, unlabelled).with_keypoints()
    assert annotations.keypoints.shape == (2, 3, 3) and not annotations.keypoints[1, :, 2].any()
    assert annotations.records()[1]["num_keypoints"] == 0
    assert "2 boxes (1 with keypoints)" in annotations.summary


@pytest.mark.parametrize(
    "value",
    [
        "text", 7, {"x": 1}, [1, 2], [2, 1, 2, 5], [2, 1, "2"], [2, None, 2], [2, 1, True], [2, float("nan"), 2],
        [2, 1, 3], [2, 1, -1], [2, 1, 0.5], [[2, 1, 2]],
    ],
)  # fmt: skip
def test_invalid_keypoints_are_an_error(read, value):
    annotations = read(POINTS, value)
    with pytest.raises(
        ValueError, match=r"a\.json: 1 of 2 annotations have keypoints .* \(expected x, y .*: id 1 has"
    ):
        annotations.with_keypoints()


def test_different_numbers_of_keypoints_are_an_error(read):
    annotations = read(POINTS, POINTS, POINTS[:6])
    with pytest.raises(
        ValueError, match=r"different numbers of keypoints: id 2 has 2, id 0 has 3\. Give each"
    ):
        annotations.with_keypoints()


@pytest.mark.parametrize("objects", [[None, None], [[0] * 9], [[]]])
def test_a_file_without_keypoints_says_so(read, objects):
    with pytest.raises(NotAnnotatedError, match=r"a\.json has no labelled keypoints to train on"):
        read(*objects).with_keypoints()


def test_keypoints_of_crowds_do_not_count(read):
    annotations = read(POINTS, None)
    annotations.boxes.is_crowd[0] = True
    with pytest.raises(NotAnnotatedError, match="has no labelled keypoints"):
        annotations.with_keypoints()


@pytest.mark.parametrize("points", [[0.3, 0.2, 2, 0.6, 0.5, 2], [30, 20, 2, 60, 40, 1]])
def test_keypoints_far_from_their_boxes_are_in_another_format(read, points):
    annotations = read(POINTS[:6], points, points, bbox=[3, 3, 3, 3])
    with pytest.raises(
        ValueError, match="2 of 3 objects have all of their keypoints outside their boxes, such as"
    ):
        annotations.with_keypoints()


def test_keypoints_are_not_checked_where_only_boxes_are_needed(read):
    annotations = read("text")
    assert annotations.keypoints is None and annotations.num_keypoints == 0


def test_a_box_that_is_left_out_for_want_of_a_mask_loses_its_keypoints(read):
    content = read(POINTS, [3, 2, 2] * 3)
    content.boxes.records[1]["segmentation"] = [[2, 1, 6, 1, 6, 5, 2, 5]]
    for annotations in (content.with_keypoints().with_masks(), content.with_masks().with_keypoints()):
        assert np.array_equal(annotations.keypoints, [[[3, 2, 2]] * 3]) and len(annotations.masks) == 1
