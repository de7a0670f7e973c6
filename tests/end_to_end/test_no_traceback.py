"""Every command with unusable files: one sentence on stderr, a non-zero exit code, and never a traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rcnn_backend.server.cli import main as rcnn_serve
from rcnn_client.tools.detect_cli import main as rcnn_detect
from rcnn_client.tools.eval_cli import main as rcnn_eval
from rcnn_client.tools.perf_cli import main as rcnn_perf
from rcnn_export.commands.export import main as rcnn_export
from rcnn_export.commands.train import main as rcnn_train
from rcnn_export.commands.verify import main as rcnn_verify

SAMPLES = Path(__file__).resolve().parents[2] / "export" / "samples"
DIGITS = ["--model", "rcnn_export.digits.detector:digits_detector"]
PICTURES = [{"id": 1, "file_name": "1.png", "width": 40, "height": 30}]
CATEGORIES = [{"id": 1, "name": "square"}]
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 10], "area": 200, "iscrowd": 0}

Refused = Callable[[Callable[[list[str]], int], list[str]], str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must refuse its input and returns its error message."""

    def run(command: Callable[[list[str]], int], arguments: list[str]) -> str:
        code: object
        try:
            code = command(arguments)
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr().err
        assert code in (1, 2), said
        assert "Traceback" not in said and "\x1b[" not in said
        sentences = [line for line in said.splitlines() if line.startswith("rcnn-")]
        assert len(sentences) == 1, said
        return sentences[0]

    return run


def annotations(**changed: object) -> str:
    content = {"images": PICTURES, "annotations": [BOX], "categories": CATEGORIES}
    return json.dumps(content | changed)


BAD_ANNOTATIONS = {
    "not_json": "nothing of the kind",
    "empty_file": "",
    "a_list": "[]",
    "no_images": annotations(images=[]),
    "no_annotations": annotations(annotations=[]),
    "bbox_empty": annotations(annotations=[BOX | {"bbox": []}]),
    "bbox_null": annotations(annotations=[BOX | {"bbox": None}]),
    "bbox_text": annotations(annotations=[BOX | {"bbox": ["a", "b", "c", "d"]}]),
    "bbox_negative": annotations(annotations=[BOX | {"bbox": [5, 5, -20, 10]}]),
    "bbox_corners": annotations(annotations=[BOX | {"id": n, "bbox": [25, 20, 38, 28]} for n in range(9)]),
    "bbox_normalised": annotations(
        annotations=[BOX | {"id": n, "bbox": [0.1, 0.2, 0.3, 0.4]} for n in range(9)]
    ),
    "unknown_picture": annotations(annotations=[BOX | {"image_id": 7}]),
    "unknown_category": annotations(annotations=[BOX | {"category_id": 7}]),
    "repeated_pictures": annotations(images=[*PICTURES, PICTURES[0] | {"file_name": "2.png"}]),
    "picture_without_size": annotations(images=[{"id": 1, "file_name": "1.png"}]),
}


@pytest.mark.parametrize("name", BAD_ANNOTATIONS)
def test_bad_annotations(refused: Refused, tmp_path: Path, name: str) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    path = tmp_path / "annotations.json"
    path.write_text(BAD_ANNOTATIONS[name])
    data = [str(path), str(tmp_path)]
    said = [
        refused(rcnn_eval, [*data, "--out", str(tmp_path / "eval")]),
        refused(rcnn_train, ["--train", *data, "--val", *data, *DIGITS, "--out", str(tmp_path / "run")]),
    ]
    assert all(str(path) in each for each in said), said


def bad_weights() -> dict[str, Callable[[Path], object]]:
    tensors = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(11, 64)}
    return {
        "empty.pth": lambda path: path.write_bytes(b""),
        "html.pth": lambda path: path.write_text("<!DOCTYPE html><html>Not found</html>"),
        "cut.pth": lambda path: path.write_bytes((SAMPLES / "digits.safetensors").read_bytes()[:5000]),
        "numbers.npy": lambda path: np.save(path, np.zeros(3)),
        "no_detector.pth": lambda path: torch.save({"epoch": 3}, path),
        "part.pth": lambda path: torch.save(tensors, path),
        "folder.pth": lambda path: path.mkdir(),
        "missing.pth": lambda path: None,
    }


@pytest.mark.parametrize("name", bad_weights())
def test_bad_weights(refused: Refused, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    bad_weights()[name](path)
    weights = ["--weights", str(path)]
    said = refused(rcnn_export, ["faster_rcnn", *DIGITS, *weights, "--repository", str(tmp_path / "models")])
    assert name in said
    run = [
        "--sample",
        "digits",
        "--sample-pictures",
        "2",
        "2",
        "--batch-size",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    assert name in refused(rcnn_train, [*run, *weights])


@pytest.mark.parametrize(
    "labels",
    [b"", b"\n \n", "größe\nweiß\n".encode("latin-1"), b"one\0two\n", b"one\none\n", b"one\ntwo\n", None],
)
def test_bad_labels(refused: Refused, tmp_path: Path, labels: bytes | None) -> None:
    path = tmp_path / "labels.txt"
    if labels is not None:
        path.write_bytes(labels)
    weights = ["--weights", str(SAMPLES / "digits.safetensors"), "--labels", str(path)]
    refused(rcnn_export, ["faster_rcnn", *DIGITS, *weights, "--repository", str(tmp_path / "models")])


@pytest.mark.parametrize(
    "model",
    [
        "no_such_builder",
        "no_module:function",
        "json:loads",
        "json:no_function",
        "a:b:c",
        ":",
        "maskrcnn_resnet50_fpn",
    ],
)
def test_bad_models(refused: Refused, tmp_path: Path, model: str) -> None:
    arguments = ["faster_rcnn", "--model", model, "--weights", "random", "--repository", str(tmp_path)]
    assert model in refused(rcnn_export, arguments)


def test_bad_repositories(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "broken" / "digits").mkdir(parents=True)
    (tmp_path / "broken" / "digits" / "config.pbtxt").write_text("no { config")
    for name in ("missing", "empty", "file", "broken"):
        repository = str(tmp_path / name)
        assert name in refused(rcnn_serve, [repository])
        assert name in refused(rcnn_serve, [repository, "--models", "digits"])
        assert name in refused(rcnn_verify, ["--repository", repository, "--name", "digits"])


def test_bad_pictures_and_folders(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no_picture.jpg").write_text("no picture")
    for command in (rcnn_detect, rcnn_perf):
        for name in ("missing", "empty", "no_picture.jpg"):
            refused(command, [str(tmp_path / name), "--url", "127.0.0.1:9"])
