"""The COCO-format dataset and its metric."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rcnn_export.errors import ExportError
from rcnn_export.train.coco_dataset import CocoDataset
from rcnn_export.train.coco_eval import Detected, score


def _content() -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 20], "area": 150, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [30, 20, 12, 11], "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 4, "bbox": [5, 5, 0, 3]},
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    return tmp_path


def _dataset(folder: Path, content: Any) -> CocoDataset:
    (folder / "annotations.json").write_text(json.dumps(content))
    return CocoDataset(folder / "annotations.json", folder)


def test_boxes_labels_and_crowds(folder: Path) -> None:
    dataset = _dataset(folder, _content())
    assert dataset.class_names == ["cat", "dog"]  # by id, not by place
    assert dataset.num_skipped == 1  # the box without width
    picture, target = dataset[0]
    assert picture.shape == (3, 30, 40) and picture.dtype == torch.uint8
    assert target["boxes"].tolist() == [[1, 2, 11, 22], [30, 20, 40, 30]]  # the second clipped to the picture
    assert target["labels"].tolist() == [2, 1]
    assert target["area"].tolist() == [150, 132]
    assert target["iscrowd"].tolist() == [False, True]


def test_a_picture_without_annotation_has_empty_boxes(folder: Path) -> None:
    dataset = _dataset(folder, {**_content(), "annotations": []})
    assert dataset[0][1]["boxes"].shape == (0, 4)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    Image.new("RGB", (30, 40)).save(tmp_path / "a.png", exif=exif)
    assert _dataset(tmp_path, _content())[0][0].shape == (3, 30, 40)


def _changed(part: str, **values: Any) -> dict[str, Any]:
    content = _content()
    content[part][0].update(values)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "categories": []}, "has no annotations"),
        ([], "has no images, annotations, categories"),
        ({**_content(), "images": [], "annotations": []}, "lists no images"),
        ({**_content(), "categories": [], "annotations": []}, "lists no categories"),
        (
            _changed("annotations", image_id=8),
            "annotation 1 .* belongs to picture 8, which is not under images",
        ),
        (_changed("annotations", category_id=5), r"has the category 5, .* under categories: \[4, 9\]"),
        (_changed("annotations", bbox=[1, 2, 3]), "expected left, top, width, height in pixels"),
        (_changed("annotations", bbox=[1, 2, -3, 4]), "expected left, top, width, height in pixels"),
        (_changed("annotations", bbox=[1, 2, float("nan"), 4]), "expected left, top, width, height"),
        (_changed("annotations", bbox=[30, 20, 39, 29]), "centre lies outside its picture of 40x30 px"),
        (_changed("images", file_name="b.png"), "1 of 1 pictures .* are missing, the first is .*b.png"),
        (
            {**_content(), "annotations": [{"image_id": 7, "category_id": 4}]},
            "not in COCO's instances format",
        ),
    ],
)
def test_a_bad_annotation_is_named(folder: Path, content: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        _dataset(folder, content)


def test_a_missing_or_broken_file_is_named(folder: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot read the annotations .*none\.json: No such file"):
        CocoDataset(folder / "none.json", folder)
    (folder / "broken.json").write_text("{")
    with pytest.raises(ExportError, match=r"broken\.json is not JSON"):
        CocoDataset(folder / "broken.json", folder)


def test_a_picture_that_does_not_fit_its_annotation_is_named(folder: Path) -> None:
    dataset = _dataset(folder, _content())
    Image.new("RGB", (80, 60)).save(folder / "a.png")
    with pytest.raises(ExportError, match=r"a\.png is \(80, 60\) px .* annotation says \(40, 30\)"):
        dataset[0]
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ExportError, match=r"cannot read the picture .*a\.png"):
        dataset[0]


def _detected(truth_bbox: list[float], found: list[tuple[list[float], float]], iscrowd: int = 0) -> Detected:
    area = truth_bbox[2] * truth_bbox[3]
    return Detected(
        images=[{"id": 0, "height": 100, "width": 100}],
        truth=[{"image_id": 0, "category_id": 1, "bbox": truth_bbox, "area": area, "iscrowd": iscrowd}],
        found=[{"image_id": 0, "category_id": 1, "bbox": bbox, "score": value} for bbox, value in found],
    )


def test_average_precision_by_hand() -> None:
    # IoU 0.72: right at the thresholds 0.50, 0.55, 0.60, 0.65 and 0.70, five of ten.
    metrics = score([_detected([0, 0, 100, 50], [([0, 0, 72, 50], 0.9)])], ["a", "b"])
    assert metrics["ap"] == pytest.approx(0.5)
    assert (metrics["ap50"], metrics["ap75"]) == (pytest.approx(1), 0)
    assert metrics["ap_per_class"] == {"a": pytest.approx(0.5), "b": -1}
    assert metrics["num_pictures"] == 1


def test_parts_of_a_dataset_are_joined() -> None:
    right, wrong = ([0.0, 0.0, 50.0, 50.0], 0.9), ([50.0, 50.0, 20.0, 20.0], 0.8)
    parts = [_detected([0, 0, 50, 50], [right]), _detected([0, 0, 50, 50], [wrong])]
    metrics = score(parts, ["a"])
    # Half of the objects are found: precision 1 up to recall 0.5, which 51 of 101 points reach.
    assert metrics["ap"] == pytest.approx(51 / 101)
    assert metrics["num_pictures"] == 2


def test_a_crowd_is_neither_missed_nor_wrong() -> None:
    parts = [_detected([0, 0, 50, 50], [([0, 0, 50, 50], 0.9)])]
    parts.append(_detected([0, 0, 80, 80], [([10, 10, 20, 20], 0.95)], iscrowd=1))
    assert score(parts, ["a"])["ap"] == pytest.approx(1)


def test_nothing_found_is_zero() -> None:
    assert score([_detected([0, 0, 50, 50], [])], ["a"])["ap"] == 0
