"""Segmentations in COCO files: one rule for each irregularity. The tests write all files themselves."""

import json

import numpy as np
import pytest
from pycocotools import mask as rle
from rcnn_client.tools.annotations import read_annotations
from rcnn_client.tools.coco_score import score

SQUARE = [[2, 1, 5, 1, 5, 3, 2, 3]]  # columns 2 to 4 of rows 1 and 2


@pytest.fixture
def read(tmp_path):
    """Writes and reads masks in a picture of 8x6 px: a square and the given objects, all with the same box."""

    def write_and_read(*segmentations, bbox=(2, 1, 3, 2), with_masks=True):
        annotations = [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": bbox, "segmentation": each}
            for number, each in enumerate((SQUARE, *segmentations), start=1)
        ]
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": annotations,
        }
        path = tmp_path / "a.json"
        path.write_text(json.dumps(content))
        annotations = read_annotations(path)
        return annotations.with_masks() if with_masks else annotations

    return write_and_read


def square():
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:5] = 1
    return mask


def compressed(mask):
    encoded = rle.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        [[2.0, 1.0, 4.0, 1.0, 4.0, 3.0, 2.0, 3.0], [4, 1, 5, 1, 5, 3, 4, 3]],  # in two parts
        [*SQUARE, [7, 5, 7, 5]],  # with a second part of no area
        {"size": [6, 8], "counts": [13, 2, 4, 2, 4, 2, 21]},  # column by column, background first
        {"size": [6, 8], "counts": [13.0, 2, 4, 2, 4, 2, 21]},
        compressed(square()),
    ],
)
def test_polygons_and_both_run_lengths_are_one_mask(read, segmentation):
    annotations = read(segmentation)
    assert np.array_equal(rle.decode(annotations.masks[1]), square())
    assert annotations.records()[1]["segmentation"] == annotations.masks[1]
    assert "1 pictures, 2 boxes with masks, 1 classes" in annotations.summary


def test_runs_of_any_length_are_read_as_pycocotools_writes_them(read):
    rng = np.random.default_rng(0)
    masks = [(rng.random((6, 8)) < share).astype(np.uint8) for share in (0.1, 0.5, 0.9)]
    masks += [np.ones((6, 8), np.uint8)]
    found = read(*(compressed(mask) for mask in masks)).masks[1:]
    assert all(np.array_equal(rle.decode(each), mask) for each, mask in zip(found, masks, strict=True))


def test_a_mask_beyond_its_picture_is_cut(read):
    (_, mask) = read([[-4, -4, 12, -4, 12, 3, -4, 3]]).masks
    assert rle.decode(mask).sum() == 3 * 8 and rle.decode(mask)[:3].all()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "1 annotation without a segmentation"),
        ([], "1 annotation without a segmentation"),
        ({}, "1 annotation without a segmentation"),
        ([[]], "1 mask of fewer than 3 points"),
        ([[2, 1, 5, 3]], "1 mask of fewer than 3 points"),
        ([[9, 1, 12, 1, 12, 3]], "1 mask that covers no pixel of its picture"),
        ([[0.2, 0.1, 0.3, 0.1, 0.3, 0.2]], "1 mask that covers no pixel of its picture"),
        ({"size": [6, 8], "counts": [48]}, "1 mask that covers no pixel of its picture"),
    ],
)
def test_annotations_without_a_mask_are_left_out_and_counted(read, segmentation, reason):
    annotations = read(segmentation)
    assert len(annotations.masks) == len(annotations.boxes.bbox) == 1
    assert f"left out: {reason}" in annotations.summary


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (
            [2, 1, 5, 1, 5, 3],
            r"cannot be used \(expected polygons in pixels, .*: id 2 has \[2, 1, 5, 1, 5, 3\]",
        ),
        ([[2, 1, 5, 1, 5]], "cannot be used"),
        ([[2, 1, 5, 1, 5, "3"]], "cannot be used"),
        ([[2, 1, 5, 1, 5, float("nan")]], "cannot be used"),
        ([[2, 1, 5, 1, 5, 1e9]], "cannot be used"),
        ("mask.png", 'cannot be used .*: id 2 has "mask.png"'),
        (True, "cannot be used"),
        ({"size": [6, 8]}, "cannot be used"),
        ({"counts": [48]}, "cannot be used"),
        ({"size": [6, 8], "counts": [60, -12]}, "cannot be used"),
        ({"size": [6, 8], "counts": "zz~\x01"}, "cannot be used"),
        ({"size": [6, 8], "counts": "Q" * 99}, "cannot be used"),
        ({"size": [8, 6], "counts": [48]}, r"of another size .* \[height, width\]\): id 2 has \[8, 6\]"),
        ({"size": [6, 8], "counts": [13, 2]}, "do not add up to the pixels of their picture: id 2 has 15"),
        ({"size": [6, 8], "counts": [13, 2**40]}, "do not add up"),
        ({"size": [6, 8], "counts": ""}, "do not add up to the pixels of their picture: id 2 has 0"),
    ],
)
def test_invalid_masks_are_an_error(read, segmentation, message):
    with pytest.raises(ValueError, match=rf"a\.json: 1 of 2 annotations have a .*{message}"):
        read(segmentation)


def test_an_annotation_without_an_id_is_named_by_its_place(tmp_path, read):
    read("mask.png", with_masks=False)
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"].insert(0, {**content["annotations"][0], "bbox": [2, 1, 0, 2]})  # left out
    for record in content["annotations"]:
        del record["id"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'1 of 2 annotations have .*: annotations\[2\] has "mask.png"'):
        read_annotations(tmp_path / "a.json").with_masks()


def test_masks_outside_their_boxes_are_an_error(read):
    with pytest.raises(
        ValueError, match=r"2 of 2 segmentations lie outside their boxes, .* \[5.0, 4.0, 3.0, 2.0\]"
    ):
        read(SQUARE, bbox=(5, 4, 3, 2))


def test_segmentations_are_not_checked_where_only_boxes_are_needed(read):
    annotations = read("mask.png", with_masks=False)
    assert annotations.masks is None and len(annotations.boxes) == 2
    assert "segmentation" not in annotations.records()[1]


def test_a_file_without_masks_says_so(tmp_path, read):
    read()
    content = json.loads((tmp_path / "a.json").read_text())
    del content["annotations"][0]["segmentation"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has no mask to train on .* 1 annotation without a segmentation"):
        read_annotations(tmp_path / "a.json").with_masks()


def test_average_precision_of_masks_by_hand():
    # The mask found has 7 of the 10 rows of the true one. Its IoU is 0.7, so it matches at 0.50 to 0.70, five of ten
    # thresholds. Its box matches at all of them.
    true, found = np.zeros((2, 20, 20), np.uint8)
    true[:10], found[:7] = 1, 1
    record = {"image_id": "x", "category_id": 1, "bbox": [0, 0, 20, 10]}
    truth = [{**record, "area": 200, "iscrowd": 0, "segmentation": compressed(true)}]
    detected = [{**record, "score": 0.9, "segmentation": rle.encode(np.asfortranarray(found))}]
    parts = [{"id": "x", "height": 20, "width": 20}], [{"id": 1, "name": "a"}], truth, detected
    assert score(*parts, "segm").ap == pytest.approx(0.5)
    assert score(*parts).ap == pytest.approx(1)
