"""FP16 is a property of the module: networks in FP16, boxes and scores in FP32, and answers near those of FP32."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from rcnn_export.commands import verify
from rcnn_export.detector.load import Detector
from rcnn_export.engines.half_precision import ChannelAffine, to_half
from rcnn_export.engines.options import ONNX
from rcnn_export.engines.precision import FP16
from rcnn_export.engines.stages import engine_stage
from rcnn_export.verify.engines import load_pipeline
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from tritonclient.grpc.model_config_pb2 import DataType

pytestmark = pytest.mark.xdist_group("export")

PICTURES = sorted((Path(__file__).resolve().parents[3] / "export" / "samples" / "pictures").glob("*.jpg"))
HALF, SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(5), FrozenBatchNorm2d(5, eps=0.0), nn.BatchNorm2d(5, affine=False)]
)
def test_a_batch_norm_becomes_its_scale_and_shift(norm: nn.Module) -> None:
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2)
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(ChannelAffine(norm)(x), norm.eval()(x), atol=1e-6, rtol=1e-6)


def test_a_batch_norm_of_small_variance_is_not_rounded_before_it_is_inverted() -> None:
    """In FP16 a variance of 2e-8 is zero, but its scale, which is 7071 with a weight of 1, can be represented."""
    norm = FrozenBatchNorm2d(1, eps=0.0)
    norm.running_var.fill_(2e-8)
    half = to_half(nn.Sequential(norm))
    found = half(torch.ones(1, 1, 1, 1, dtype=torch.float16))
    assert found.item() == pytest.approx(7071, rel=1e-3)


def test_the_model_itself_stays_as_it_is(digits: Detector) -> None:
    engine_stage(digits.model, "rpn", FP16)
    assert {parameter.dtype for parameter in digits.model.parameters()} == {torch.float32}


def test_answers_are_near_those_in_fp32(plan_repository: Path, digits_repository: Path) -> None:
    half, single = (load_pipeline(folder, "digits", ONNX) for folder in (plan_repository, digits_repository))
    assert half.input_dtype == np.float16
    for path in PICTURES:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        found, expected = (pipeline.detect([pixels], {"score_thresh": 0.3}) for pipeline in (half, single))
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.5)
        np.testing.assert_allclose(found.scores, expected.scores, atol=0.02)


def verify_pictures(repository: Path) -> int:
    pictures = [str(path) for path in PICTURES[:2]]
    arguments = ["--name", "digits", "--engine", "onnx", "--images", *pictures, "--batch", "2"]
    return verify.main(["--repository", str(repository), *arguments])


def test_verify_holds_by_the_bounds_of_fp16(
    plan_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_pictures(plan_repository) == verify.HOLDS
    shown = capsys.readouterr().out
    assert "Holds: 100.00% of the detections match, the rest is within the bounds of fp16" in shown


def test_verify_finds_a_wrong_stage_in_fp16(
    plan_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights of a head are a quarter too large, which is more than a rounding error."""
    shutil.copytree(plan_repository, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "digits_header" / "1" / "model.onnx"
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(largest)
    largest.CopyFrom(onnx.numpy_helper.from_array(values * np.float16(1.25), largest.name))
    onnx.save(model, path)
    assert verify_pictures(tmp_path) == verify.DIVERGES
    assert "The first stage that diverges: header (alone)" in capsys.readouterr().out


def test_networks_are_half_and_boxes_and_scores_are_single(plan_repository: Path) -> None:
    for stage, half_tensors in (("rpn", {"input", "feature_0"}), ("header", {"roialigned_feature"})):
        graph = onnx.load(plan_repository / f"digits_{stage}" / "1" / "model.onnx").graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        assert {name for name, type_ in types.items() if type_ == HALF} >= half_tensors
        for name in ("rpn_boxes", "class_scores", "class_boxes", "proposals"):
            assert types.get(name, SINGLE) == SINGLE
        weights = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}
        assert weights <= {HALF}


def test_configs_declare_what_the_graphs_have(plan_repository: Path) -> None:
    from rcnn_backend.contract.configs import read_configs

    names = {onnx.TensorProto.FLOAT16: DataType.TYPE_FP16, onnx.TensorProto.FLOAT: DataType.TYPE_FP32}
    configs = read_configs(plan_repository)
    for stage in ("rpn", "header"):
        graph = onnx.load(plan_repository / f"digits_{stage}" / "1" / "model.onnx").graph
        config = configs[f"digits_{stage}"]
        declared = {tensor.name: tensor.data_type for tensor in (*config.input, *config.output)}
        assert declared == {
            value.name: names[value.type.tensor_type.elem_type] for value in (*graph.input, *graph.output)
        }
    makers = {tensor.name: tensor.data_type for tensor in configs["digits_proposals"].output}
    assert makers["roialigned_feature"] == DataType.TYPE_FP16
