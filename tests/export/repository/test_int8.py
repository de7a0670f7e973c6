"""An INT8 export of the sample: it is calibrated on pictures, quantised, near FP32, and built as TensorRT plans.

The graphs come from the FP32 export, which another fixture makes.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from rcnn_backend.contract.manifest import PlanOptions, check_files, read_manifest, read_plan_record
from rcnn_export.commands import verify
from rcnn_export.detector.load import Detector
from rcnn_export.engines.options import ONNX, TENSORRT, ApGoal, Calibration, EngineOptions
from rcnn_export.engines.plan_shapes import plan_profiles
from rcnn_export.engines.precision import INT8
from rcnn_export.engines.quantize import find_layers
from rcnn_export.errors import ExportError
from rcnn_export.repository import keep_float, write
from rcnn_export.repository.calibrate import find_pictures, measure_ranges
from rcnn_export.repository.write import export_repository
from rcnn_export.verify import sensitivity
from rcnn_export.verify.engines import load_pipeline

pytestmark = pytest.mark.xdist_group("export")

PICTURES = Path(__file__).resolve().parents[3] / "export" / "samples" / "pictures"
MAX_PIXELS = 50_000_000
CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
Export = Callable[..., list[str]]
Count = Callable[[bytes], int]


@pytest.fixture(scope="module")
def export(digits: Detector, digits_repository: Path) -> Export:
    """Exports the sample in INT8 into a folder and returns the reported lines."""

    def run(repository: Path, calibration: Calibration, engine: str = ONNX) -> list[str]:
        plan = PlanOptions(compute_capabilities=CAPABILITIES if engine == TENSORRT else ())
        profiles = plan_profiles(digits.model) if engine == TENSORRT else {}
        lines: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                write,
                "export_onnx",
                lambda stage: onnx.load(digits_repository / f"digits_{stage.name}" / "1" / "model.onnx"),
            )
            patch.setattr(write, "clean_graph", lambda model: model)
            options = EngineOptions(engine, INT8, profiles, plan, calibration)
            export_repository(digits, repository, "digits", lines.append, options)
        return lines

    return run


@pytest.fixture(scope="module")
def int8_repository(export: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the sample in INT8."""
    repository = tmp_path_factory.mktemp("int8")
    export(repository, Calibration(PICTURES))
    return repository


def test_the_manifest_says_what_it_was_calibrated_on(int8_repository: Path) -> None:
    for stage in ("rpn", "header"):
        manifest = read_manifest(int8_repository / f"digits_{stage}" / "1")
        assert manifest["precision"] == "int8"
        calibration = manifest["calibration"]
        assert (calibration["method"], calibration["pictures"], calibration["kept_float"]) == ("max", 4, [])
        assert len(calibration["pictures_sha256"]) == 64


def test_answers_are_near_those_in_fp32(int8_repository: Path, digits_repository: Path) -> None:
    quantized, single = (
        load_pipeline(folder, "digits", ONNX) for folder in (int8_repository, digits_repository)
    )
    for path in sorted(PICTURES.glob("*.jpg")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        found, expected = (
            pipeline.detect([pixels], {"score_thresh": 0.5}) for pipeline in (quantized, single)
        )
        np.testing.assert_array_equal(found.num_detections, expected.num_detections)
        for label in np.unique(expected.labels):
            own, theirs = (np.sort(side.boxes[side.labels == label], axis=0) for side in (found, expected))
            np.testing.assert_allclose(own, theirs, atol=4)


def test_verify_judges_by_the_bounds_of_int8(
    int8_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [str(path) for path in sorted(PICTURES.glob("*.jpg"))[:2]]
    arguments = ["--name", "digits", "--engine", "onnx", "--images", *pictures, "--batch", "2"]
    assert verify.main(["--repository", str(int8_repository), *arguments]) == verify.HOLDS
    assert "within the bounds of int8" in capsys.readouterr().out


def test_tensorrt_finds_int8_layers(int8_repository: Path, count_int8_layers: Count) -> None:
    for stage, expected in (("rpn", 25), ("header", 2)):
        graph = int8_repository / f"digits_{stage}" / "1" / "model.onnx"
        assert count_int8_layers(graph.read_bytes()) == expected


@pytest.mark.long
def test_plans_are_built_from_the_graphs(export: Export, tmp_path: Path, count_int8_layers: Count) -> None:
    export(tmp_path, Calibration(PICTURES), TENSORRT)
    for stage in ("rpn", "header"):
        version_dir = tmp_path / f"digits_{stage}" / "1"
        record = read_plan_record(version_dir)
        assert record and record.compute_capabilities == list(CAPABILITIES)
        check_files(version_dir, record)
        assert count_int8_layers((version_dir / "model.onnx").read_bytes())


def test_ranges_are_measured_once_for_the_same_networks_and_pictures(
    int8_repository: Path, export: Export, tmp_path: Path
) -> None:
    (cache,) = int8_repository.glob(".calibration-*.json")
    shutil.copy(cache, tmp_path)
    lines = export(tmp_path, Calibration(PICTURES, keep_float=["backbone.body.stem", "box_head.fc6"]))
    assert f"Calibrated before: the ranges are in {tmp_path / cache.name}" in lines
    assert "Calibrating 21 of 24 layers, max" in lines
    manifest = read_manifest(tmp_path / "digits_rpn" / "1")
    assert manifest["calibration"]["kept_float"] == [
        "backbone.body.stem.0.0",
        "backbone.body.stem.1.0",
        "box_head.fc6",
    ]
    graph = onnx.load(tmp_path / "digits_header" / "1" / "model.onnx")
    assert "box_head.fc6" in find_layers(graph) and "box_head.fc7" not in find_layers(graph)
    lines = export(tmp_path, Calibration(PICTURES, method="percentile"))
    assert any(line.startswith("Calibrated on 4 of 4") for line in lines)


def spoil(cache: Path) -> str:
    cache.write_text(cache.read_text()[:100])
    return r"cannot use the calibration in .*json: JSONDecodeError.* Delete the file"


def swap_for_another(cache: Path) -> str:
    cache.write_text(json.dumps(json.loads(cache.read_text()) | {"key": "0" * 64}))
    return r"it was measured for another detector, or on other pictures\. Delete the file to calibrate again"


@pytest.mark.parametrize("change", [spoil, swap_for_another])
def test_another_cache_is_refused(
    int8_repository: Path, digits_repository: Path, tmp_path: Path, change: Callable[[Path], str]
) -> None:
    (original,) = int8_repository.glob(".calibration-*.json")
    message = change(Path(shutil.copy(original, tmp_path)))
    pictures = find_pictures(Calibration(PICTURES), MAX_PIXELS, print)
    with pytest.raises(ExportError, match=message):
        measure_ranges(digits_repository, "digits", pictures, "max", tmp_path, print)


def test_pictures_without_objects_are_refused(digits_repository: Path, tmp_path: Path) -> None:
    for number in range(2):
        ramp = np.linspace(0, 100 + number, 64 * 64).reshape(64, 64).astype(np.uint8)
        Image.fromarray(ramp).save(tmp_path / f"{number}.png")
    pictures = find_pictures(Calibration(tmp_path), MAX_PIXELS, print)
    with pytest.raises(
        ExportError, match="finds nothing in any of the 2 calibration pictures: give --calibrate"
    ):
        measure_ranges(digits_repository, "digits", pictures, "max", tmp_path, print)
    assert not list(tmp_path.glob(".calibration-*"))


def test_a_refused_export_leaves_the_older_one(int8_repository: Path, export: Export, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(int8_repository, tmp_path / "models"))
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    with pytest.raises(
        ExportError, match=r"--keep-float backbone.layer9 is not a layer .* It has 24: backbone.body.stem"
    ):
        export(repository, Calibration(PICTURES, keep_float=["backbone.layer9"]))
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before


@pytest.mark.long
def test_sensitivity_ranks_the_layers(
    int8_repository: Path,
    digits_repository: Path,
    digits: Detector,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        sensitivity,
        "export_onnx",
        lambda stage: onnx.load(digits_repository / f"digits_{stage.name}" / "1" / "model.onnx"),
    )
    monkeypatch.setattr(sensitivity, "clean_graph", lambda model: model)
    pixels = np.asarray(Image.open(min(PICTURES.glob("*.jpg"))).convert("RGB"))[:96, :128]
    costs = sensitivity.measure_costs(digits.model, int8_repository, "digits", [pixels], None, print)
    assert len(costs) == 24 and len({cost.layer for cost in costs}) == 24
    assert all(0 < cost.error < 0.2 for cost in costs)
    assert costs == sorted(costs, key=lambda cost: -cost.error)
    with pytest.raises(ExportError, match="digits has no INT8 layers: --sensitivity is for exports of"):
        sensitivity.measure_costs(digits.model, digits_repository, "digits", [pixels], None, print)

    arguments = ["--name", "digits", "--sensitivity", "--images", str(min(PICTURES.glob("*.jpg")))]
    annotations = ["--annotations", str(PICTURES / "annotations.json"), str(PICTURES)]
    assert verify.main(["--repository", str(int8_repository), *arguments, *annotations]) == verify.HOLDS
    said = capsys.readouterr().out
    assert said.count(" alone in INT8: AP ") == 24
    losses = [float(lost) for lost in re.findall(r"% +([+-]\d+\.\d\d)", said)]
    assert len(losses) == 24 and losses == sorted(losses, reverse=True)


@pytest.mark.long
def test_layers_stay_in_fp32_until_the_loss_is_allowed(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.6, 0.5])  # made up, because the sample loses nothing on its four pictures
    monkeypatch.setattr(keep_float, "largest_loss", lambda *_: next(losses))
    goal = ApGoal(0.5, PICTURES / "annotations.json", PICTURES)
    lines = export(tmp_path, Calibration(PICTURES, ap_goal=goal))
    assert any(line.startswith("INT8 with 0 of 24 layers in FP32: AP ") for line in lines)
    assert any(line.startswith("INT8 with 1 of 24 layers in FP32: AP ") for line in lines)
    for stage in ("rpn", "header"):
        calibration = read_manifest(tmp_path / f"digits_{stage}" / "1")["calibration"]
        (kept,) = calibration["kept_float"]
        assert f"Staying in FP32: {kept}" in lines
        assert calibration["ap"]["pictures"] == 4 and calibration["ap"]["fp32"].keys() == {"boxes"}
    graphs = [onnx.load(tmp_path / f"digits_{stage}" / "1" / "model.onnx") for stage in ("rpn", "header")]
    assert [layer for graph in graphs for layer in find_layers(graph)] == [kept]
