"""FP16 is a property of the module: half networks, FP32 boxes and scores, near the FP32 answers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorrt_rtx as trt
import torch
from PIL import Image
from rcnn_backend.pipeline import Pipeline
from rcnn_export import verify
from rcnn_export.detector import Detector
from rcnn_export.engine_options import FP16, EngineOptions
from rcnn_export.half_precision import ChannelAffine, to_half
from rcnn_export.onnx_export import rpn_stage
from rcnn_export.repository import export_repository
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from tritonclient.grpc.model_config_pb2 import DataType

pytestmark = pytest.mark.xdist_group("digits")

PICTURES = sorted((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))
HALF, SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def half_repository(digits: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("half")
    export_repository(digits, repository, "digits", options=EngineOptions(precision=FP16))
    return repository


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
    """In half, a variance of 2e-8 is zero; its scale, 7071 with a weight of 1, is not."""
    norm = FrozenBatchNorm2d(1, eps=0.0)
    norm.running_var.fill_(2e-8)
    half = to_half(nn.Sequential(norm))
    found = half(torch.ones(1, 1, 1, 1, dtype=torch.float16))
    assert found.item() == pytest.approx(7071, rel=1e-3)


def test_the_model_itself_stays_as_it_is(digits: Detector) -> None:
    rpn_stage(digits.model, FP16)
    assert {parameter.dtype for parameter in digits.model.parameters()} == {torch.float32}


def test_answers_are_near_those_in_fp32(half_repository: Path, digits_repository: Path) -> None:
    half, single = (Pipeline.load(folder, "digits") for folder in (half_repository, digits_repository))
    assert half.input_dtype == np.float16
    for path in PICTURES:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        found, expected = (pipeline.detect([pixels], {"score_thresh": 0.3}) for pipeline in (half, single))
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.5)
        np.testing.assert_allclose(found.scores, expected.scores, atol=0.02)


def test_verify_says_that_its_bounds_are_those_of_fp32(
    half_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main(["--repository", str(half_repository), "--name", "digits"]) == verify.UNUSABLE
    assert "digits is exported in float16" in capsys.readouterr().err


def test_networks_are_half_and_boxes_and_scores_are_single(half_repository: Path) -> None:
    for stage, half_tensors in (("rpn", {"input", "feature_0"}), ("header", {"roialigned_feature"})):
        graph = onnx.load(half_repository / f"digits_{stage}" / "1" / "model.onnx").graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        assert {name for name, type_ in types.items() if type_ == HALF} >= half_tensors
        for name in ("rpn_boxes", "class_scores", "class_boxes", "proposals"):
            assert types.get(name, SINGLE) == SINGLE
        weights = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4}
        assert weights <= {HALF}


def test_configs_declare_what_the_graphs_have(half_repository: Path) -> None:
    from rcnn_backend.model_selection import read_configs

    names = {onnx.TensorProto.FLOAT16: DataType.TYPE_FP16, onnx.TensorProto.FLOAT: DataType.TYPE_FP32}
    configs = read_configs(half_repository)
    for stage in ("rpn", "header"):
        graph = onnx.load(half_repository / f"digits_{stage}" / "1" / "model.onnx").graph
        config = configs[f"digits_{stage}"]
        declared = {tensor.name: tensor.data_type for tensor in (*config.input, *config.output)}
        assert declared == {
            value.name: names[value.type.tensor_type.elem_type] for value in (*graph.input, *graph.output)
        }
    makers = {tensor.name: tensor.data_type for tensor in configs["digits_proposals"].output}
    assert makers["roialigned_feature"] == DataType.TYPE_FP16


@pytest.mark.timeout(600)
def test_tensorrt_builds_it_strongly_typed(half_repository: Path) -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    for stage in ("rpn", "header"):
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        path = half_repository / f"digits_{stage}" / "1" / "model.onnx"
        assert parser.parse(path.read_bytes()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            rest = tuple(tensor.shape)[2:]
            shapes = (
                ((1, 3, 64, 64), (4, 3, 320, 416), (8, 3, 416, 416))
                if stage == "rpn"
                else ((1, 10, *rest), (4, 150, *rest), (8, 150, *rest))
            )
            profile.set_shape(tensor.name, *shapes)
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        config.add_optimization_profile(profile)
        assert builder.build_serialized_network(network, config) is not None
