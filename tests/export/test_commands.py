"""The commands as a user sees them: a fast --help, --version, Ctrl-C."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from rcnn_backend.contract.chain import CHAINS
from rcnn_export.commands import choices, export, export_arguments, verify
from rcnn_export.detector.load import TORCHVISION_MODELS
from rcnn_export.engines.options import ENGINE_FILES, METHODS, NUM_CALIBRATION_PICTURES
from rcnn_export.engines.plan_shapes import EXAMPLE
from rcnn_export.engines.precision import PRECISIONS
from rcnn_export.engines.stages import MAX_BATCH
from rcnn_export.errors import INTERRUPTED

COMMANDS = ("rcnn-serve", "rcnn-export", "rcnn-verify", "rcnn-train")
SLOW = ("torch", "onnx", "numpy", "grpc", "rich.table")


def test_the_choices_are_those_of_the_code() -> None:
    assert list(choices.TORCHVISION_MODELS) == TORCHVISION_MODELS
    assert list(choices.DEFAULT_MODELS) == list(CHAINS)
    assert set(choices.DEFAULT_MODELS.values()) < set(TORCHVISION_MODELS)
    assert tuple(ENGINE_FILES) == choices.ENGINES
    assert tuple(PRECISIONS) == choices.PRECISIONS
    assert choices.CALIBRATION_METHODS == METHODS
    assert choices.NUM_CALIBRATION_PICTURES == NUM_CALIBRATION_PICTURES
    assert choices.EXAMPLE_SHAPES == EXAMPLE
    assert choices.MAX_BATCH == MAX_BATCH


@pytest.mark.parametrize(
    ("given", "family", "model"),
    [
        ([], None, "fasterrcnn_resnet50_fpn"),
        (["faster_rcnn"], "faster_rcnn", "fasterrcnn_resnet50_fpn"),
        (["mask_rcnn", "--name", "a"], "mask_rcnn", "maskrcnn_resnet50_fpn"),
        (["--name", "a", "mask_rcnn"], "mask_rcnn", "maskrcnn_resnet50_fpn"),
        (["--model", "my:model"], None, "my:model"),
        (["--model", "my:model", "faster_rcnn", "--name", "a"], "faster_rcnn", "my:model"),
    ],
)
def test_the_family_is_optional_and_stands_anywhere(given: list[str], family: str | None, model: str) -> None:
    arguments = export_arguments.parse(given)
    assert (arguments.family, arguments.model) == (family, model)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version_import_nothing_slow(command: str) -> None:
    """The time depends on how busy the machine is, so the best of three counts."""
    program = Path(sys.executable).with_name(command)
    times_s = []
    for _ in range(3):
        started = time.monotonic()
        shown = subprocess.run([program, "--help"], check=True, capture_output=True, text=True).stdout
        times_s.append(time.monotonic() - started)
    assert min(times_s) < 1
    assert "(default: " in shown and max(map(len, shown.splitlines())) <= 80
    version = subprocess.run(
        [sys.executable, "-X", "importtime", program, "--version"], check=True, capture_output=True, text=True
    )
    assert version.stdout == f"{command} 0.1.0\n"
    imported = {line.rpartition("|")[2].strip() for line in version.stderr.splitlines()}
    assert not imported & set(SLOW)


@pytest.mark.parametrize(
    ("command", "work", "arguments", "said"),
    [
        (export, "_export", ["faster_rcnn"], "rcnn-export: interrupted; model_repository is unchanged\n"),
        (verify, "_verify", [], "rcnn-verify: interrupted\n"),
    ],
)
def test_ctrl_c_is_one_line(
    command: object,
    work: str,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, work, interrupted)
    assert command.main(arguments) == INTERRUPTED  # type: ignore[attr-defined]
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--precision", "int8"],
            "--precision int8 needs --calibrate FOLDER: a few hundred pictures like those",
        ),
        (
            ["--precision", "int8", "--engine", "cudnn"],
            "--precision int8 needs --calibrate FOLDER: a few hundred pictures like those",
        ),
        (
            ["--precision", "int8", "--engine", "aoti", "--calibrate", "."],
            "--engine aoti has no INT8: use --engine cudnn, onnx or tensorrt, or --precision fp16",
        ),
        (["--calibrate", "."], "--calibrate is for INT8: add --precision int8"),
        (["--keep-float", "backbone"], "--keep-float is for INT8: add --precision int8"),
        (
            ["--precision", "fp16", "--calibration-pictures", "3", "--most-ap-loss", "0"],
            "--calibration-pictures and --most-ap-loss are for INT8: add --precision int8",
        ),
        (
            ["--precision", "int8", "--calibrate", ".", "--most-ap-loss", "0"],
            "--most-ap-loss needs --annotations ANNOTATIONS PICTURES: a COCO instances file and the folder of its",
        ),
        (
            ["--precision", "int8", "--calibrate", ".", "--annotations", "a.json", "."],
            "--annotations is for --most-ap-loss: add it, or leave --annotations out",
        ),
    ],
)
def test_options_of_int8_go_together(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "load_detector", lambda *_, **__: None)
    assert export.main(["faster_rcnn", *arguments]) == 1
    said = capsys.readouterr().err
    assert message in said and said.startswith("rcnn-export: ") and said.count("\n") == 1


@pytest.mark.parametrize("points", ["-1", "100", "nan", "half"])
def test_a_loss_that_is_no_number_of_points(points: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export.main(["--most-ap-loss", points])
    assert (
        f"{points!r} is not a loss in points of AP, expected 0 to 100, such as 0.5" in capsys.readouterr().err
    )


def test_annotations_are_for_the_sensitivity(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verify.main(["--annotations", "a.json", "."])
    assert "--annotations is for --sensitivity; rcnn-eval measures" in capsys.readouterr().err
