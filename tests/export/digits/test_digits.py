import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from rcnn_export.digits import backgrounds as digits_backgrounds
from rcnn_export.digits import compose as digits
from rcnn_export.digits import dataset as digits_dataset
from rcnn_export.digits.compose import DigitPicture, compose_picture, source_digits
from rcnn_export.digits.dataset import DigitsDataset
from rcnn_export.digits.keypoints import extreme_points
from rcnn_export.train.coco_dataset import CocoDataset, read
from torch.utils.data import DataLoader


@pytest.fixture(scope="module")
def pictures() -> list[DigitPicture]:
    return [compose_picture("train", index) for index in range(40)]


def test_a_picture_depends_on_split_and_index_only(pictures: list[DigitPicture]) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (a global seed must not matter)
    random.seed(1)
    again = compose_picture("train", 7)
    assert np.array_equal(again.pixels, pictures[7].pixels)
    assert np.array_equal(again.boxes, pictures[7].boxes)
    assert np.array_equal(again.labels, pictures[7].labels)
    assert not np.array_equal(again.pixels, compose_picture("held-out", 7).pixels)


def test_a_worker_process_composes_the_same_pictures(pictures: list[DigitPicture]) -> None:
    loader = DataLoader(DigitsDataset("train", 2), num_workers=1, batch_size=None)
    for (pixels, target), expected in zip(loader, pictures, strict=False):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected.pixels)
        assert np.array_equal(target["boxes"].numpy(), expected.boxes)


def test_boxes_are_tight_around_the_ink(pictures: list[DigitPicture]) -> None:
    for picture in pictures:
        assert picture.masks.shape == (len(picture.boxes), *picture.pixels.shape[:2])
        for box, mask in zip(picture.boxes, picture.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_keypoints_are_the_middles_of_the_farthest_ink() -> None:
    ink = np.array([
        [0, 1, 0, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 1, 1, 1],
        [1, 0, 0, 1, 0, 0, 0],
        [0, 1, 0, 1, 0, 0, 0],
    ], bool)  # fmt: skip
    # In the top row one run is longer, in the bottom row two runs are equal; the left column has a run of three pixels.
    assert extreme_points(ink).tolist() == [[4, 0], [6, 2], [1, 4], [0, 2]]
    assert extreme_points(np.ones((1, 4), bool)).tolist() == [[1, 0], [3, 0], [1, 0], [0, 0]]


def test_keypoints_touch_the_boxes_and_are_hidden_under_later_digits(pictures: list[DigitPicture]) -> None:
    hidden = 0
    for picture in pictures:
        assert picture.keypoints.shape == (len(picture.boxes), 4, 3) and picture.keypoints.dtype == np.float32
        for number, (box, points) in enumerate(zip(picture.boxes, picture.keypoints, strict=True)):
            top, right, bottom, left = points
            assert [left[0] - 0.5, top[1] - 0.5, right[0] + 0.5, bottom[1] + 0.5] == box.tolist()
            for x, y, visibility in points:
                row, column = int(y), int(x)
                assert picture.masks[number, row, column]
                is_hidden = picture.masks[number + 1 :, row, column].any()
                assert visibility == (1 if is_hidden else 2)
                hidden += is_hidden
    assert hidden > 5


def test_the_ink_is_where_the_picture_differs_from_its_surroundings(pictures: list[DigitPicture]) -> None:
    """The masks are at the right place: in most boxes the colours of ink and background differ."""
    contrasts = []
    for picture in pictures:
        for (left, top, right, bottom), mask in zip(picture.boxes.astype(int), picture.masks, strict=True):
            crop, ink = picture.pixels[top:bottom, left:right].astype(float), mask[top:bottom, left:right]
            if not ink.all():
                contrasts.append(np.abs(crop[ink].mean(axis=0) - crop[~ink].mean(axis=0)).mean())
    assert np.quantile(contrasts, 0.1) > 25


def test_pictures_vary_as_promised(pictures: list[DigitPicture]) -> None:
    heights, widths = zip(*(picture.pixels.shape[:2] for picture in pictures), strict=True)
    assert min(heights + widths) >= 256 and max(heights + widths) <= 480
    assert max(heights) - min(heights) > 100
    boxes = np.concatenate([picture.boxes for picture in pictures])
    longer_sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert longer_sides.min() < 30 and longer_sides.max() > 110 and longer_sides.max() < 200
    labels = np.concatenate([picture.labels for picture in pictures])
    assert set(labels.tolist()) == set(range(1, 11))


def test_overlapping_digits_stay_visible(pictures: list[DigitPicture]) -> None:
    overlaps = 0
    for picture in pictures:
        for position, mask in enumerate(picture.masks):
            hidden = mask & picture.masks[position + 1 :].any(axis=0)
            assert hidden.sum() <= digits.MAX_HIDDEN_SHARE * mask.sum()
            overlaps += hidden.any()
    assert overlaps > 5


def test_splits_share_no_digit_and_no_photo() -> None:
    train, held_out = source_digits("train"), source_digits("held-out")
    assert not set(train.tolist()) & set(held_out.tolist())
    assert len(train) + len(held_out) == 1797
    assert 0.15 < len(held_out) / 1797 < 0.25
    assert not set(digits_backgrounds.PHOTOS["train"]) & set(digits_backgrounds.PHOTOS["held-out"])


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown split 'test': expected one of train, held-out"):
        compose_picture("test", 0)


def test_the_coco_folder_holds_the_same_annotations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert digits_dataset.main([str(tmp_path), "--split", "held-out", "--indices", "3", "5"]) == 0
    assert "wrote 2 pictures" in capsys.readouterr().out
    exported = CocoDataset(tmp_path / "annotations.json", tmp_path)
    assert exported.class_names == list("0123456789")
    composed = [compose_picture("held-out", index) for index in (3, 5)]
    for (pixels, target), picture in zip((exported[0], exported[1]), composed, strict=True):
        assert np.array_equal(target["boxes"].numpy(), picture.boxes)
        assert np.array_equal(target["labels"].numpy(), picture.labels)
        assert target["area"].tolist() == [mask.sum() for mask in picture.masks]
        loss = np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - picture.pixels)  # of JPEG
        assert loss.mean() < 5

    with_keypoints = CocoDataset(read(tmp_path / "annotations.json", "keypoints"), tmp_path)
    assert with_keypoints.keypoint_names == ["top", "right", "bottom", "left"]
    for index, (picture, number) in enumerate(zip(composed, (3, 5), strict=True)):
        assert np.array_equal(with_keypoints[index][1]["keypoints"].numpy(), picture.keypoints)
        of_sample = DigitsDataset("held-out", 6, "keypoints")[number][1]["keypoints"]
        assert np.array_equal(of_sample.numpy(), picture.keypoints)

    coco = COCO(tmp_path / "annotations.json")
    assert coco.getImgIds() == [3, 5]
    for annotation, mask in zip(coco.imgToAnns[5], composed[1].masks, strict=True):
        assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
    file_names = [
        image["file_name"] for image in json.loads((tmp_path / "annotations.json").read_text())["images"]
    ]
    with Image.open(tmp_path / file_names[0]) as picture:
        assert picture.format == "JPEG"
