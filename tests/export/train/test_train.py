import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from rcnn_client.tools import eval_cli
from rcnn_export.commands import train
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.digits.dataset import DigitsDataset, write_coco
from rcnn_export.digits.detector import digits_detector
from rcnn_export.errors import ExportError
from rcnn_export.train.coco_dataset import CocoDataset, Sample
from rcnn_export.train.coco_eval import detect, score
from rcnn_export.train.epochs import readable
from rcnn_export.train.loop import Training
from rcnn_export.train.processes import Processes
from safetensors import safe_open
from safetensors.torch import load_file

SAMPLES = Path(__file__).parents[3] / "export" / "samples"
LIGHT = "rcnn_export.digits.detector:digits_detector"
SMALL_RUN = ["--sample", "digits", "--sample-pictures", "2", "1", "--epochs", "2", "--batch-size", "1"]
SMALL_RUN += ["--device", "cpu", "--workers", "0"]


def test_a_stopped_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main([*SMALL_RUN, "--out", str(whole)]) == 0

    take_step = Training.train_step

    def step_and_interrupt(training: Training, batch: list[Sample]) -> float:
        loss = take_step(training, batch)
        os.kill(os.getpid(), signal.SIGINT)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Training, "train_step", step_and_interrupt)
        assert train.main([*SMALL_RUN, "--out", str(stopped)]) == train.INTERRUPTED
    assert "stopped at step 1 of 4: --resume continues" in capsys.readouterr().out
    assert train.main([*SMALL_RUN, "--out", str(stopped), "--resume"]) == 0
    assert "resuming at step 1 of 4" in capsys.readouterr().out

    ends = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, stopped)]
    assert ends[0]["step"] == ends[1]["step"] == 4
    start = digits_detector(11).state_dict()
    for kind in ("model", "averaged_model"):
        assert all(torch.equal(tensor, ends[1][kind][name]) for name, tensor in ends[0][kind].items())
        assert not torch.equal(
            ends[0][kind]["backbone.body.stem.0.0.weight"], start["backbone.body.stem.0.0.weight"]
        )
    metrics = json.loads((stopped / "metrics.json").read_text())
    assert metrics["command"].startswith("rcnn-train --sample digits")
    assert metrics["num_pictures"] == 1
    assert (stopped / "labels.txt").read_text().split() == list("0123456789")
    with safe_open(stopped / "weights.safetensors", "pt") as weights:
        assert weights.metadata()["model"] == LIGHT

    # A run in a folder can only be continued, and only with the settings with which it began.
    assert train.main([*SMALL_RUN, "--out", str(stopped)]) == 1
    assert "belongs to an earlier run: add --resume" in capsys.readouterr().err
    assert train.main([*SMALL_RUN, "--out", str(stopped), "--resume", "--seed", "5"]) == 1
    assert "made with other settings (seed was 0, now 5)" in capsys.readouterr().err
    (stopped / "checkpoint.pt").write_bytes(b"cut off")
    assert train.main([*SMALL_RUN, "--out", str(stopped), "--resume"]) == 1
    assert "cannot read the checkpoint" in capsys.readouterr().err


def test_a_run_is_resumed_with_more_epochs_and_starts_with_an_evaluation_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(epochs: int, *options: str) -> int:
        return train.main([*SMALL_RUN, "--epochs", str(epochs), "--out", str(tmp_path), *options])

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Processes, "share_buffers", interrupt)  # the first call of the evaluation
        assert run(1) == train.INTERRUPTED
    out = capsys.readouterr().out
    assert "epoch 1/1: step 1/2  loss " in out and "  learning rate 1.0e-03  " in out  # no terminal, so lines
    assert (
        "stopping after this step" in out and "stopped during the evaluation: --resume starts with it" in out
    )
    assert not (tmp_path / "metrics.json").exists()

    assert run(1, "--resume") == 0
    out = capsys.readouterr().out
    assert "resuming at step 2 of 2" in out and ": step " not in out and "evaluating picture 1/1" in out
    assert run(1, "--resume") == 0
    assert "all 1 epochs are done: give more --epochs to train longer" in capsys.readouterr().out

    assert run(2, "--resume") == 0
    out = capsys.readouterr().out
    assert "resuming at step 2 of 4" in out and "epoch 2/2  loss " in out
    # After the single warm-up step there are three steps; this is the second.
    half_way = 1e-3 * (0.01 + 0.99 * (1 + math.cos(math.pi / 3)) / 2)
    assert "epoch 2/2: step 1/2  loss" in out and f"learning rate {half_way:.1e}" in out
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (checkpoint["step"], len(checkpoint["history"])) == (4, 2)

    assert run(1, "--resume") == 1
    assert "has done 2 epochs already: give a larger --epochs than 2" in capsys.readouterr().err


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of digits with two classes, even and odd."""
    folder = tmp_path_factory.mktemp("coco")
    path = write_coco(folder, "train", range(2))
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 1, "name": "even"}, {"id": 2, "name": "odd"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 2 - annotation["category_id"] % 2
    path.write_text(json.dumps(content))
    return folder


def _on(folder: Path) -> list[str]:
    return [
        option
        for name in ("--train", "--val")
        for option in (name, f"{folder}/annotations.json", str(folder))
    ]


def test_fine_tuning_keeps_the_statistics_and_fits_the_classes(
    coco_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", LIGHT, "--weights", str(SAMPLES / "digits.safetensors"), "--epochs", "1"]
    options += ["--batch-size", "2", "--horizontal-flip", "--device", "cpu", "--workers", "1"]
    options += ["--batch-norm-eps", "1e-4"]
    assert train.main([*_on(coco_folder), *options, "--out", str(tmp_path)]) == 0
    log = capsys.readouterr().out
    assert f"training {LIGHT} from the weights {SAMPLES}/digits.safetensors" in log
    assert (
        "initialising again, for 3 classes instead of 11 (background included): roi_heads.box_predictor.cls_s"
        in log
    )
    tuned = load_detector(LIGHT, str(tmp_path / "weights.safetensors"), labels=tmp_path / "labels.txt")
    assert tuned.class_names[1:] == ["even", "odd"]
    assert (
        tuned.batch_norm_eps == load_detector(LIGHT, str(tmp_path / "checkpoint.pt")).batch_norm_eps == 1e-4
    )
    before, after = load_file(SAMPLES / "digits.safetensors"), tuned.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "backbone.body.stem.0.0.weight" in changed
    assert not [name for name in changed if "running_" in name]


@pytest.mark.long
def test_several_processes_train_one_detector(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        "--local-addr=127.0.0.1",
    ]
    command += [
        "-m",
        "rcnn_export.commands.train",
        "--sample",
        "digits",
        "--sample-pictures",
        "2",
        "2",
        "--epochs",
        "1",
    ]
    command += ["--batch-size", "2", "--device", "cpu", "--workers", "0", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("epoch 1/1  loss") == 1  # only one process prints
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["num_pictures"] == 2  # the shares of both processes were evaluated
    assert metrics["command"].startswith("torchrun --nproc-per-node=2")


def test_without_weights_it_starts_from_the_published_ones(
    coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    options = [*_on(coco_folder), "--batch-size", "2", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert train.main([*options, "--model", "fasterrcnn_mobilenet_v3_large_320_fpn"]) == 1
    printed = capsys.readouterr()
    assert "training fasterrcnn_mobilenet_v3_large_320_fpn from the weights DEFAULT" in printed.out
    assert "cannot download FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1" in printed.err
    assert "no route" in printed.err and "train from scratch with --weights random" in printed.err
    # A function has no published weights: training starts from the weights that it builds.
    for chosen, expected in (([], "random"), (["--weights", "DEFAULT"], "DEFAULT")):
        arguments = train.parse([*options, "--model", LIGHT, *chosen])
        settings = train._settings(arguments, LIGHT, CocoDataset(*arguments.train), Processes("cpu"))
        assert settings.weights == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "DEFAULT"], "a function of yours, which has no published weights 'DEFAULT'"),
        (["--resume"], "there is no checkpoint"),
        (["--model", "fasterrcnn_resnet18"], "unknown model 'fasterrcnn_resnet18'"),
        (["--weights", "none.safetensors"], "no weights file none.safetensors"),
        (["--batch-size", "5"], "--batch-size 5 does not fit 2 pictures"),
        (["--device", "cuda:77"], "no device 'cuda:77': torch sees"),
        (["--device", "abacus"], "unknown device 'abacus'"),
    ],
)
def test_errors_are_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*SMALL_RUN, *options, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rcnn-train: ") and message in error
    assert not (tmp_path / "out").exists()


def test_a_broken_picture_met_by_a_worker_is_named(
    coco_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(coco_folder.glob("*.jpg"))
    whole = path.read_bytes()
    Image.new("RGB", (8, 8)).save(path)
    options = ["--model", LIGHT, "--epochs", "1", "--batch-size", "2", "--device", "cpu", "--workers", "1"]
    try:
        assert train.main([*_on(coco_folder), *options, "--out", str(tmp_path)]) == 1
    finally:
        path.write_bytes(whole)
    error = capsys.readouterr().err
    assert error.startswith(f"rcnn-train: {path} is (8, 8) px") and len(error.splitlines()) == 1


def test_data_must_come_with_its_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--train", "a.json", "a", "--out", "out"])
    assert "--train and --val go together" in capsys.readouterr().err


def test_a_loader_that_dies_gives_a_short_error() -> None:
    def batches() -> Iterator[list[Sample]]:
        yield []
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.\nmore")

    passed_on = readable(batches())
    assert next(passed_on) == []
    with pytest.raises(
        ExportError, match=r"a process that loads pictures died \(DataLoader worker .*Killed\.\)"
    ):
        next(passed_on)


def _with(part: str, **values: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[part][0].update(values)


@pytest.mark.parametrize(
    "spoil",
    [
        _with("annotations", bbox=[]),
        _with("annotations", bbox=None),
        _with("annotations", bbox=["1", "2", "3", "4"]),
        _with("annotations", bbox=[float("nan"), 2, 3, 4]),
        _with("annotations", image_id=[7]),
        _with("annotations", category_id="1"),
        _with("annotations", iscrowd="no"),
        _with("annotations", area={}),
        _with("images", id=1),
        _with("images", file_name=None),
        _with("images", width="wide"),
        _with("categories", name=["odd"]),
        _with("categories", id=2),
        lambda content: content.pop("annotations"),
        lambda content: content.pop("images"),
        lambda content: content["annotations"].clear(),
        lambda content: content["images"].clear(),
        lambda content: content["annotations"].append(7),
    ],
)
def test_a_bad_annotation_file_is_one_sentence_from_training_and_evaluation(
    coco_folder: Path,
    tmp_path: Path,
    spoil: Callable[[dict[str, Any]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = json.loads((coco_folder / "annotations.json").read_text())
    spoil(content)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))
    good = [f"{coco_folder}/annotations.json", str(coco_folder)]
    out = ["--out", str(tmp_path / "out")]
    said = set()
    for data in (
        ["--train", str(bad), good[1], "--val", *good],
        ["--train", *good, "--val", str(bad), good[1]],
    ):
        assert train.main([*data, "--device", "cpu", *out]) == 1
        said.add(capsys.readouterr().err.removeprefix("rcnn-train: "))
    assert eval_cli.main([str(bad), good[1], "--url", "127.0.0.1:1", *out]) == 1
    (sentence,) = {*said, capsys.readouterr().err.removeprefix("rcnn-eval: ")}  # all three say the same
    assert str(bad) in sentence and sentence.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def sample() -> Detector:
    return load_detector(LIGHT, str(SAMPLES / "digits.safetensors"), labels=SAMPLES / "labels.txt")


def test_the_sample_weights_detect_held_out_digits(sample: Detector) -> None:
    data = DigitsDataset("held-out", 60)
    metrics = score([detect(sample.model, ((index, data[index]) for index in range(60)))], data.class_names)
    assert metrics["ap"] >= 0.75


def test_the_sample_is_light_and_described(sample: Detector) -> None:
    assert (SAMPLES / "digits.safetensors").stat().st_size < 10e6
    described = json.loads((SAMPLES / "digits.json").read_text())
    assert described["class_names"] == sample.class_names[1:]
    assert described["model"] == LIGHT
    assert described["ap"] >= 0.75 and described["num_pictures"] >= 500


def test_the_demo_pictures_are_detected(sample: Detector) -> None:
    content = json.loads((SAMPLES / "pictures" / "annotations.json").read_text())
    assert len(content["images"]) == len(list((SAMPLES / "pictures").glob("*.jpg")))
    pictures = CocoDataset(SAMPLES / "pictures" / "annotations.json", SAMPLES / "pictures")
    shares = [  # as for two processes
        detect(sample.model, ((index, pictures[index]) for index in range(rank, len(pictures), 2)))
        for rank in (0, 1)
    ]
    metrics = score(shares, pictures.class_names)
    assert metrics["ap50"] > 0.95
    whole = detect(sample.model, ((index, pictures[index]) for index in range(len(pictures))))
    assert score([whole], pictures.class_names) == metrics
    assert sample.model.roi_heads.score_thresh == 0.05  # it is restored
