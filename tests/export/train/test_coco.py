"""The COCO-format dataset and its metric."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rcnn_client.tools.annotations import Annotations
from rcnn_export.errors import ExportError
from rcnn_export.train.coco_dataset import CocoDataset, read, used_names
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
    assert dataset.class_names == ["cat", "dog"]  # in the order of ids, not of the file
    picture, target = dataset[0]
    assert picture.shape == (3, 30, 40) and picture.dtype == torch.uint8
    assert target["boxes"].tolist() == [
        [1, 2, 11, 22],
        [30, 20, 40, 30],
    ]  # the second is clipped, the third has no height or width and is left out
    assert target["bbox"].tolist() == [[1, 2, 10, 20], [30, 20, 12, 11]]  # as annotated, for scoring
    assert target["labels"].tolist() == [2, 1]
    assert target["area"].tolist() == [150, 132]
    assert target["iscrowd"].tolist() == [False, True]


def test_a_picture_without_annotation_has_empty_boxes(folder: Path) -> None:
    content = _content()
    content["images"].insert(0, {**content["images"][0], "id": 3, "file_name": "b.png"})
    Image.new("L", (40, 30)).save(folder / "b.png")
    dataset = _dataset(folder, content)
    assert [len(dataset[position][1]["boxes"]) for position in (0, 1)] == [0, 2]
    assert dataset[0][1]["boxes"].shape == dataset[0][1]["bbox"].shape == (0, 4)


def _categories(*names: str, used: str) -> dict[str, Any]:
    """A file with these categories, with ids from 1 on, and a box of each category in ``used``."""
    content = _content()
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    content["annotations"] = [
        {"image_id": 7, "category_id": number, "bbox": [1, 2, 10, 20]}
        for number, name in enumerate(names, start=1)
        if name in used
    ]
    return content


def _read(folder: Path, name: str, content: Any) -> Annotations:
    (folder / name).write_text(json.dumps(content))
    return read(folder / name)


def test_classes_are_what_training_or_evaluation_uses(folder: Path) -> None:
    train = _read(folder, "train.json", _categories("root", "a", "b", "c", "d", used="abc"))
    val = _read(folder, "val.json", _categories("c", "x", "a", "d", used="ad"))
    assert used_names(train, val) == ["a", "b", "c", "d"]  # in the order of the ids in the first file
    dataset = CocoDataset(val, folder, used_names(train, val))
    assert dataset[0][1]["labels"].tolist() == [1, 4]
    with pytest.raises(
        ExportError, match=r"val\.json has boxes of 'x', which is not among .*train\.json: 'root', 'a'"
    ):
        used_names(train, _read(folder, "val.json", _categories("x", "a", used="xa")))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored pixels are turned by 90 degrees
    Image.new("RGB", (30, 40)).save(tmp_path / "a.png", exif=exif)
    assert _dataset(tmp_path, _content())[0][0].shape == (3, 30, 40)


def _changed(part: str, **values: Any) -> dict[str, Any]:
    content = _content()
    content[part][0].update(values)
    return content


def test_a_bad_file_and_a_missing_picture_are_named(folder: Path) -> None:
    with pytest.raises(
        ExportError, match=r"1 of 3 annotations have a bbox that cannot be used .*: id 1 has \[\]"
    ):
        _dataset(folder, _changed("annotations", bbox=[]))
    with pytest.raises(ExportError, match=r"1 of 1 pictures in .*json are missing, the first is .*b\.png"):
        _dataset(folder, _changed("images", file_name="b.png"))


def test_a_picture_that_does_not_fit_its_annotation_is_named(folder: Path) -> None:
    dataset = _dataset(folder, _content())
    Image.new("RGB", (80, 60)).save(folder / "a.png")
    with pytest.raises(ExportError, match=r"a\.png is \(80, 60\) px .* annotation says \(40, 30\)"):
        dataset[0]
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ExportError, match=r"cannot read the picture .*a\.png"):
        dataset[0]


def _detected(
    truth_bbox: list[float], found: list[tuple[list[float], float]], iscrowd: int = 0, image_id: int = 0
) -> Detected:
    area = truth_bbox[2] * truth_bbox[3]
    return Detected(
        images=[{"id": image_id}],
        truth=[
            {"image_id": image_id, "category_id": 1, "bbox": truth_bbox, "area": area, "iscrowd": iscrowd}
        ],
        found=[
            {"image_id": image_id, "category_id": 1, "bbox": bbox, "score": value} for bbox, value in found
        ],
    )


def test_average_precision_by_hand() -> None:
    # The IoU is 0.72, which matches at the thresholds 0.50, 0.55, 0.60, 0.65 and 0.70, five of ten.
    metrics = score([_detected([0, 0, 100, 50], [([0, 0, 72, 50], 0.9)])], ["a", "b"])
    assert metrics["ap"] == pytest.approx(0.5)
    assert (metrics["ap50"], metrics["ap75"]) == (pytest.approx(1), 0)
    assert metrics["ap_per_class"] == {"a": pytest.approx(0.5), "b": -1}
    assert metrics["num_pictures"] == 1


def test_parts_of_a_dataset_are_joined() -> None:
    right, wrong = ([0.0, 0.0, 50.0, 50.0], 0.9), ([50.0, 50.0, 20.0, 20.0], 0.8)
    parts = [_detected([0, 0, 50, 50], [right]), _detected([0, 0, 50, 50], [wrong], image_id=1)]
    metrics = score(parts, ["a"])
    assert metrics == score(parts[::-1], ["a"])
    # Half of the objects are found: the precision is 1 up to a recall of 0.5, at 51 of 101 points.
    assert metrics["ap"] == pytest.approx(51 / 101)
    assert metrics["num_pictures"] == 2


def test_a_crowd_is_neither_missed_nor_wrong() -> None:
    parts = [_detected([0, 0, 50, 50], [([0, 0, 50, 50], 0.9)])]
    parts.append(_detected([0, 0, 80, 80], [([10, 10, 20, 20], 0.95)], iscrowd=1, image_id=1))
    assert score(parts, ["a"])["ap"] == pytest.approx(1)


def test_nothing_found_is_zero() -> None:
    assert score([_detected([0, 0, 50, 50], [])], ["a"])["ap"] == 0
