"""The sample exported in INT8 for cuDNN: which parts are INT8, and how near it is to FP32 and to the INT8 ONNX graph.

The tests run on a CPU, where torch's own operators stand in for cuDNN's graphs.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rcnn_backend.contract.manifest import read_manifest
from rcnn_backend.pipeline import Pipeline
from rcnn_export.commands import verify
from rcnn_export.detector.load import Detector
from rcnn_export.engines.options import CUDNN, Calibration, EngineOptions, precision_of
from rcnn_export.engines.quantize import quantize
from rcnn_export.errors import ExportError
from rcnn_export.repository import calibrate_fused
from rcnn_export.repository.quantize import Calibrated
from rcnn_export.repository.sensitivity import load_graphs
from rcnn_export.repository.write import export_repository
from rcnn_export.verify.engines import load_pipeline
from rcnn_export.verify.sensitivity import measure_costs

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("export")]

PICTURES = Path(__file__).resolve().parents[3] / "export" / "samples" / "pictures"
LARGEST_ERROR = 0.1  # relative to a level's largest magnitude: INT8 rounding, and sums in another order


class Export:
    """The ``repository`` with the sample, the ``lines`` reported, and the ONNX graphs with ranges, ``calibrated``."""

    def __init__(self, digits: Detector, repository: Path) -> None:
        self.repository = repository
        self.lines: list[str] = []
        made: list[Calibrated] = []
        calibrate = calibrate_fused.calibrate_graphs
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                calibrate_fused,
                "calibrate_graphs",
                lambda *arguments: made.append(calibrate(*arguments)) or made[0],
            )
            options = EngineOptions(
                CUDNN, precision_of(CUDNN, "int8"), calibration=Calibration(PICTURES, keep_float=["head"])
            )
            export_repository(digits, repository, "digits", self.lines.append, options)
        (self.calibrated,) = made


@pytest.fixture(scope="module")
def export(digits: Detector, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return Export(digits, tmp_path_factory.mktemp("int8"))


def test_all_but_the_stem_and_what_is_kept_is_int8(export: Export) -> None:
    assert "Calibrating 23 of 24 layers, max" in export.lines
    fused = "In the rpn, 33 of 33 convolutions are fused with what follows them, 20 of them in INT8"
    assert fused in export.lines
    program = torch.export.load(export.repository / "digits_rpn" / "1" / "model.cudnn.pt2")
    operators = (
        torch.ops.rcnn.convolution.default,
        torch.ops.rcnn.convolution_int8.default,
        torch.ops.rcnn.quantize.default,
    )
    calls = [node for node in program.graph.nodes if node.target in operators]
    counts = [sum(node.target == operator for node in calls) for operator in operators]
    # The stem's output is quantised, and so are all levels of the pyramid but the finest before their last convolution.
    assert counts == [13, 20, 4]
    made = Counter(node.args[-1] for node in calls if node.target == operators[1])
    # Downsampled residuals, the pyramid, and the maps that are upsampled in it are FP16.
    assert made == {torch.int8: 10, torch.float16: 10}


def test_the_manifest_and_the_configs_are_those_of_int8_in_fp16(export: Export) -> None:
    for stage in ("rpn", "header"):
        manifest = read_manifest(export.repository / f"digits_{stage}" / "1")
        assert manifest["precision"] == "int8" and list(manifest["engines"]) == ["model.cudnn.pt2"]
        calibration = manifest["calibration"]
        assert (calibration["method"], calibration["pictures"]) == ("max", 4)
        assert calibration["kept_float"] == ["head.conv.0.0"]
        assert [path.name for path in (export.repository / f"digits_{stage}" / "1").glob("model.*")] == [
            "model.cudnn.pt2"
        ]
    assert len(list(export.repository.glob(".calibration-*.json"))) == 1
    assert load_pipeline(export.repository, "digits").input_dtype == np.float16


def onnx_pipeline(export: Export, digits_repository: Path) -> Pipeline:
    """The ONNX graphs with the same layers in INT8 and the same ranges."""
    calibrated = export.calibrated
    graphs = {
        step: quantize(graph, calibrated.ranges[step], calibrated.kept)
        for step, graph in calibrated.graphs.items()
    }
    return load_graphs(digits_repository, "digits", graphs)


def test_features_are_near_those_of_the_onnx_graph(export: Export, digits_repository: Path) -> None:
    program, graph = load_pipeline(export.repository, "digits"), onnx_pipeline(export, digits_repository)
    pixels = np.random.default_rng(0).random((2, 3, 128, 160), np.float32)
    found = program.engines["rpn"].run({"input": pixels.astype(np.float16)})
    expected = graph.engines["rpn"].run({"input": pixels})
    for level in range(4):
        ours, theirs = found[f"feature_{level}"], expected[f"feature_{level}"]
        assert ours.dtype == np.float16
        assert np.abs(ours - theirs).max() < LARGEST_ERROR * np.abs(theirs).max()


def test_answers_are_near_those_in_fp32_and_of_the_onnx_graph(
    export: Export, digits_repository: Path
) -> None:
    program = load_pipeline(export.repository, "digits")
    others = load_pipeline(digits_repository, "digits"), onnx_pipeline(export, digits_repository)
    for path in sorted(PICTURES.glob("*.jpg")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        found, *answers = (
            pipeline.detect([pixels], {"score_thresh": 0.5}) for pipeline in (program, *others)
        )
        for expected in answers:
            np.testing.assert_array_equal(found.num_detections, expected.num_detections)
            for label in np.unique(expected.labels):
                own, theirs = (
                    np.sort(side.boxes[side.labels == label], axis=0) for side in (found, expected)
                )
                np.testing.assert_allclose(own, theirs, atol=4)


def test_verify_judges_by_the_bounds_of_int8(export: Export, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [str(path) for path in sorted(PICTURES.glob("*.jpg"))[:2]]
    arguments = ["--name", "digits", "--images", *pictures, "--batch", "2"]
    assert verify.main(["--repository", str(export.repository), *arguments]) == verify.HOLDS
    assert "within the bounds of int8" in capsys.readouterr().out


def test_sensitivity_needs_an_onnx_export(export: Export, digits: Detector) -> None:
    with pytest.raises(ExportError, match=r"was exported with --engine cudnn: export it with --engine onnx"):
        measure_costs(digits.model, export.repository, "digits", [], None, print)
