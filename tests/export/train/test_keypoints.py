"""Training and scoring with keypoints."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rcnn_client import Detections
from rcnn_client.tools import coco_score
from rcnn_client.tools.coco_file import box_record
from rcnn_client.tools.coco_shapes import SHAPES, shape_fields
from rcnn_export.commands import train
from rcnn_export.detector.load import COCO_KEYPOINTS, build_detector, load_detector
from rcnn_export.detector.shapes import num_keypoints_of
from rcnn_export.digits.dataset import DigitsDataset, write_coco
from rcnn_export.digits.detector import digits_keypoint_detector
from rcnn_export.errors import ExportError
from rcnn_export.train.coco_dataset import CocoDataset, check_same_keypoints, read
from rcnn_export.train.coco_eval import Detected, detect, found_records, score, truth_records
from rcnn_export.train.loop import Settings, Training
from rcnn_export.train.mirror import counterparts, describe_mirroring, mirrored
from rcnn_export.train.processes import Processes
from rcnn_export.train.start import initial_detector, kind_built_by
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

SAMPLES = Path(__file__).parents[3] / "export" / "samples"
KEYPOINTS = "rcnn_export.digits.detector:digits_keypoint_detector"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a COCO file of three pictures: one object, then an object for each of ``keypoints``, then none."""

    def write(*keypoints: Any, name: str = "a.json", **category: Any) -> Path:
        for number in (1, 2, 3):
            Image.new("L", (40, 30)).save(tmp_path / f"{number}.png")
        content = {
            "images": [
                {"id": each, "file_name": f"{each}.png", "width": 40, "height": 30} for each in (1, 2, 3)
            ],
            "categories": [
                {"id": 1, "name": "a", "keypoints": ["left_end", "right_end"], **category},
                {"id": 2, "name": "unused", "keypoints": ["nose"]},
            ],
            "annotations": [
                {"id": id_, "image_id": image, "category_id": 1, "bbox": [4, 5, 20, 10], "keypoints": value}
                for id_, (image, value) in enumerate(
                    [(1, [5, 6, 2, 20, 9, 1]), *((2, each) for each in keypoints)], start=31
                )
            ],
        }
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return write


def test_targets_have_the_keypoints_of_each_picture(write: Write, tmp_path: Path) -> None:
    annotations = read(write(None, [], [0, 0, 0, 7.5, 8, 2]), "keypoints")
    assert annotations.summary.startswith(
        f"{tmp_path}/a.json: 3 pictures, 4 boxes (2 with keypoints), 1 class"
    )
    data = CocoDataset(annotations, tmp_path)
    first, second, third = (data[index][1]["keypoints"] for index in range(3))
    assert first.dtype == torch.float32 and first.tolist() == [[[5, 6, 2], [20, 9, 1]]]
    assert second.tolist() == [[[0, 0, 0]] * 2, [[0, 0, 0]] * 2, [[0, 0, 0], [7.5, 8, 2]]]
    assert third.shape == (0, 2, 3)
    assert data.keypoint_names == ["left_end", "right_end"]
    boxes_alone = CocoDataset(tmp_path / "a.json", tmp_path)
    assert "keypoints" not in boxes_alone[0][1] and boxes_alone.keypoint_names == []


def test_keypoints_without_names_are_numbered_or_cocos(write: Write, tmp_path: Path) -> None:
    path = write(keypoints=None)
    assert CocoDataset(read(path, "keypoints"), tmp_path).keypoint_names == ["0", "1"]
    content = json.loads(path.read_text())
    content["annotations"][0]["keypoints"] = [5, 6, 2] * 17
    path.write_text(json.dumps(content))
    assert CocoDataset(read(path, "keypoints"), tmp_path).keypoint_names == COCO_KEYPOINTS


NUMBERS = r"expected x, y in pixels and a visibility of each, \[x1, y1, v1, x2, y2, v2, \.\.\.\]"


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        ([1, 2, 2, 3], rf"1 of 2 annotations have keypoints that do not have three numbers each \({NUMBERS}\): id 32 has"),
        ([1, 2, 3, 4, 5, 2], "have keypoints with a visibility other than 0"),
        ([1, 2, 0.5, 4, 5, 2], "have keypoints with a visibility other than 0"),
        ([1, 2, -1, 4, 5, 2], "have keypoints with a visibility other than 0"),
        ([1, float("nan"), 2, 4, 5, 2], r"have keypoints that are not a list of numbers .*: id 32 has \[1, NaN"),
        ([1, float("inf"), 2, 4, 5, 2], "have keypoints that are not a list of numbers"),
        ([1, 1e300, 2, 4, 5, 2], "have keypoints beyond any picture"),
        ([1, "2", 2, 4, 5, 2], "have keypoints that are not a list of numbers"),
        ([1, None, 2, 4, 5, 2], "have keypoints that are not a list of numbers"),
        ([True, 2, 2, 4, 5, 2], "have keypoints that are not a list of numbers"),
        ([[1, 2, 2], [4, 5, 2]], "have keypoints that are not a list of numbers"),
        ("1 2 2", 'have keypoints that are not a list of numbers .*: id 32 has "1 2 2"'),
        ({"left": [1, 2]}, "have keypoints that are not a list of numbers"),
        (7, "have keypoints that are not a list of numbers"),
        ([1, 2, 2], r"different numbers of keypoints: id 32 has 1, id 31 has 2\. Give each object all"),
    ],
)  # fmt: skip
def test_keypoints_that_cannot_be_used_are_an_error(write: Write, keypoints: Any, message: str) -> None:
    path = write(keypoints)
    with pytest.raises(ExportError, match=message) as raised:
        read(path, "keypoints")
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)
    assert len(read(path).boxes.bbox) == 2  # only the boxes are read here


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nose"], r'the category "a" lists the keypoints \["nose"\], 1 names, but the annotations have 2 keypoints'),
        (["left", "left "], "expected a different name for each"),
        (["left", 7], "expected a list of names, each one line of text"),
        (["left", ""], "expected a list of names, each one line of text"),
        (["left", "a\nb"], "expected a list of names, each one line of text"),
        ("left", "expected a list of names"),
        ({"left": 1, "right": 2}, "expected a list of names"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_used_are_an_error(write: Write, names: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        read(write(keypoints=names), "keypoints")


def _changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("keypoints", [None, [], [3, 4, 0, 0, 0, 0]])
def test_a_file_without_keypoints_is_an_error(write: Write, keypoints: list[int] | None) -> None:
    path = _changed(write(), lambda content: content["annotations"][0].update(keypoints=keypoints))
    with pytest.raises(ExportError, match="has no labelled keypoints to train on"):
        read(path, "keypoints")


def test_keypoints_in_another_unit_than_pixels_are_an_error(write: Write) -> None:
    doubled = [39, 29, 2, 38, 28, 2]
    with pytest.raises(
        ExportError,
        match=r"2 of 3 objects have all of their keypoints outside their boxes, such as \[39, 29, .*\] where "
        r"the bbox is \[4\.0, 5\.0, 20\.0, 10\.0\]",
    ):
        read(write(doubled, doubled), "keypoints")
    assert read(write(doubled), "keypoints").num_keypoints == 2  # one of two is allowed


def test_categories_and_files_with_other_keypoints_are_an_error(write: Write) -> None:
    def use_both(content: dict[str, Any]) -> None:
        content["categories"][1]["keypoints"] = ["right_end", "left_end"]
        content["annotations"].append({**content["annotations"][0], "id": 99, "category_id": 2})

    with pytest.raises(
        ExportError, match=r'"unused" lists .*, and another category .*the same for all categ'
    ):
        read(_changed(write(), use_both), "keypoints")
    first = read(write(), "keypoints")
    other_names = read(write(name="b.json", keypoints=["top", "bottom"]), "keypoints")
    with pytest.raises(
        ExportError, match=r"b\.json names the keypoints top, bottom, and .*a\.json left_end, "
    ):
        check_same_keypoints(first, other_names)
    path = _changed(
        write(name="b.json", keypoints=None),
        lambda content: content["annotations"][0].update(keypoints=[5, 6, 2]),
    )
    with pytest.raises(ExportError, match=r"b\.json has 1 keypoints for each object, and .*a\.json has 2"):
        check_same_keypoints(first, read(path, "keypoints"))
    check_same_keypoints(first, read(write(name="b.json", keypoints=None), "keypoints"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("left_eye", "right_eye"), ("eye left", "eye right"), ("LeftEye", "RightEye"), ("eyeLeft", "eyeRight"),
        ("LEFT-EYE", "RIGHT-EYE"), ("l_ankle", "r_ankle"), ("ankle.L", "ankle.R"), ("LHip", "RHip"), ("hipL", "hipR"),
        ("left", "right"), ("lefteye", "righteye"), ("L1", "R1"),
    ],
)  # fmt: skip
def test_counterparts_differ_in_left_and_right(one: str, other: str) -> None:
    assert counterparts(["nose", one, "Lower lip", other, "tail_rear"]) == [0, 3, 2, 1, 4]


def test_counterparts_of_coco() -> None:
    assert counterparts(COCO_KEYPOINTS) == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    assert describe_mirroring(["top", "right", "left"]) == "mirrored pictures: right and left change places"
    assert describe_mirroring(["0"]) == "mirrored pictures: no keypoints change places"


def test_a_keypoint_without_a_counterpart_is_an_error() -> None:
    with pytest.raises(ExportError, match="turns 'left_eye' into 'right_eye', and no keypoint"):
        counterparts(["left_eye", "nose"])
    with pytest.raises(ExportError, match="must know which keypoints are left and right"):
        counterparts(["0", "1", "2"])


def test_mirroring_exchanges_left_and_right_keypoints() -> None:
    keypoints = torch.tensor([[[1.0, 1, 2], [4, 2, 1], [2, 0, 2]]])  # left, right, nose
    objects = {"boxes": torch.tensor([[0.0, 0, 4, 2]]), "keypoints": keypoints}
    _, changed = mirrored(torch.zeros(3, 2, 5), objects, counterparts(["left", "right", "nose"]))
    assert changed["keypoints"].tolist() == [[[1, 2, 1], [4, 1, 2], [3, 0, 2]]]
    assert changed["boxes"].tolist() == [[1, 0, 5, 2]]


def test_a_model_that_finds_keypoints_is_recognised() -> None:
    assert kind_built_by("keypointrcnn_resnet50_fpn") == kind_built_by(KEYPOINTS) == "keypoints"


NAMES = ["left_end", "right_end"]
SETTINGS = Settings(
    KEYPOINTS, "random", ["a", "b"], 1, 1, 1, 1e-4, 0, True, False, 0, 1, keypoint_names=NAMES
)


def _target(boxes: list[list[float]], keypoints: list[list[list[float]]]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.bool),
        "keypoints": torch.tensor(keypoints, dtype=torch.float32).reshape(-1, 2, 3),
    }


def test_steps_without_a_labelled_keypoint_are_finite() -> None:
    training = Training(build_detector(KEYPOINTS, 3, num_keypoints=2), SETTINGS, Processes("cpu"))
    pixels = torch.zeros((3, 64, 96), dtype=torch.uint8)
    unlabelled = _target([[10, 10, 40, 50]], [[[0, 0, 0]] * 2])
    outside = _target([[10, 10, 40, 50]], [[[90, 60, 2], [1, 1, 1]]])
    for batch in ([unlabelled], [outside], [_target([], []), unlabelled], [_target([], [])]):
        loss = training.train_step([(pixels, target) for target in batch])
        assert np.isfinite(loss)
    assert all(tensor.isfinite().all() for tensor in training.averaged_model.state_dict().values())


def _detected(found: Tensor, offset_px: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The annotations and detections of two objects of 400 square pixels; one object has no labelled keypoints."""
    true = found.clone()
    true[0, :, 0] += offset_px
    true[0, 1, 2], true[1, :, 2] = 1, 0
    boxes = torch.tensor([[10.0, 10, 30, 30], [40, 10, 60, 30]])
    sizes = boxes[:, 2:] - boxes[:, :2]
    target = {
        "labels": torch.tensor([1, 1]),
        "bbox": torch.cat((boxes[:, :2], sizes), dim=1),
        "area": sizes.prod(1),
        "iscrowd": torch.tensor([False, False]),
        "keypoints": true,
    }
    return target, {
        "labels": target["labels"],
        "boxes": boxes,
        "scores": torch.tensor([0.9, 0.8]),
        "keypoints": found,
    }


def test_keypoints_are_scored_in_addition_to_boxes_as_the_client_scores_them() -> None:
    found = torch.tensor([[[12.3, 15, 1], [25.1, 18, 1]], [[45.7, 20, 1], [50, 22, 1]]])
    # OKS of each keypoint: exp(-d^2 / (2 area (2 sigma)^2)) = exp(-1.5^2 / 8) = 0.755.
    target, detections = _detected(found, offset_px=1.5)
    images, classes = [{"id": 0, "height": 40, "width": 70}], ["a"]
    metrics = score(
        [Detected(images, truth_records(0, target), found_records(0, detections))], classes, "keypoints"
    )
    assert metrics["ap"] == pytest.approx(1) and metrics["keypoints_ap"] == pytest.approx(0.6)
    assert (metrics["keypoints_ap50"], metrics["keypoints_ap75"]) == (pytest.approx(1), pytest.approx(1))
    assert metrics["keypoints_ap_per_class"] == {"a": pytest.approx(0.6)}

    columns = [detections[name].numpy() for name in ("boxes", "scores", "labels", "keypoints")]
    *of_boxes, keypoints = columns
    answer = Detections(*of_boxes, ["a", "a"], keypoints=keypoints, keypoint_scores=keypoints[..., 2])
    served = [
        box_record(
            0,
            each.label,
            each.box,
            score=each.score,
            **{name: shapes[name] for name in SHAPES if name in shapes},
        )
        for each, shapes in zip(answer, shape_fields(answer), strict=True)
    ]
    categories = [{"id": 1, "name": "a"}]
    scores = coco_score.score(images, categories, truth_records(0, target), served, "keypoints")
    assert (scores.ap, scores.ap50, scores.ap75) == tuple(
        metrics[name] for name in ("keypoints_ap", "keypoints_ap50", "keypoints_ap75")
    )


def test_nothing_found_scores_zero() -> None:
    target, _ = _detected(torch.full((2, 2, 3), 20.0), 0)
    metrics = score(
        [Detected([{"id": 0, "height": 40, "width": 70}], truth_records(0, target))], ["a"], "keypoints"
    )
    assert metrics["keypoints_ap"] == 0
    empty = {name: torch.zeros(shape) for name, shape in (("labels", 0), ("scores", 0), ("boxes", (0, 4)))}
    assert found_records(0, {**empty, "keypoints": torch.zeros((0, 2, 3))}) == []


def test_a_keypoint_rcnn_is_trained_from_a_faster_rcnn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    files = [str(write_coco(data, "train", [0])), str(data)]
    run = ["--train", *files, "--val", *files, "--model", KEYPOINTS, "--batch-size", "1", "--horizontal-flip"]
    run += ["--device", "cpu", "--workers", "0", "--epochs", "1", "--out", str(tmp_path)]
    assert train.main([*run, "--weights", str(SAMPLES / "digits.safetensors")]) == 0
    out = capsys.readouterr().out
    assert (
        "with keypoints)" in out and "has no roi_heads.keypoint_..., which keeps its initial weights" in out
    )
    assert "mirrored pictures: right and left change places" in out
    assert "keypoint AP50:95" in out and "metrics.json, labels.txt, keypoints.txt" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= metrics["keypoints_ap"] < metrics["ap"]
    assert metrics["keypoint_names"] == (tmp_path / "keypoints.txt").read_text().split()
    with safe_open(tmp_path / "weights.safetensors", "pt") as weights:
        assert json.loads(weights.metadata()["keypoint_names"]) == ["top", "right", "bottom", "left"]

    # An export can load the files of this run.
    trained = tmp_path / "weights.safetensors"
    names = tmp_path / "keypoints.txt"
    detector = load_detector(KEYPOINTS, str(trained), labels=tmp_path / "labels.txt", keypoints=names)
    assert detector.keypoint_names == ["top", "right", "bottom", "left"]
    for name, given in load_file(SAMPLES / "digits.safetensors").items():
        if "running_" in name:
            assert torch.equal(detector.model.state_dict()[name], given)


def test_other_keypoints_start_anew(tmp_path: Path) -> None:
    torch.save(digits_keypoint_detector(3, 4).state_dict(), tmp_path / "four.pth")
    said: list[str] = []
    settings = replace(SETTINGS, weights=str(tmp_path / "four.pth"))
    assert num_keypoints_of(initial_detector(settings, said.append)) == 2
    name = "roi_heads.keypoint_predictor.kps_score_lowres"
    assert said[-1] == f"initialising again, for 2 keypoints instead of 4: {name}.weight, {name}.bias"


def test_the_sample_weights_find_keypoints() -> None:
    path = SAMPLES / "digits_keypoint.safetensors"
    assert path.stat().st_size < 8e6
    names = SAMPLES / "keypoints.txt"
    sample = load_detector(KEYPOINTS, str(path), labels=SAMPLES / "labels.txt", keypoints=names)
    data = DigitsDataset("held-out", 3, "keypoints")
    assert sample.keypoint_names == data.keypoint_names
    metrics = score([detect(sample.model, ((n, data[n]) for n in range(3)))], data.class_names, "keypoints")
    assert metrics["keypoints_ap"] > 0.55 and metrics["keypoints_ap50"] > 0.9, metrics
