"""The networks of torchvision's models export, equal torch and build as TensorRT engines.

These networks are both halves of every Faster R-CNN, and the header of every mask or keypoint head. TensorRT-RTX stands
in for TensorRT here: it parses with TensorRT's own parser, and builds without a GPU, for several kinds of GPU at once.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from rcnn_backend.contract.manifest import PlanOptions, check_files, read_plan_record, write_manifest
from rcnn_backend.engines.onnx import OnnxEngine
from rcnn_backend.engines.plan_build import build_plan
from rcnn_export.detector.load import TORCHVISION_MODELS, load_detector
from rcnn_export.engines.graph_checks import DATA_DEPENDENT, NOT_IN_AN_ENGINE, clean_graph
from rcnn_export.engines.onnx_export import export_onnx
from rcnn_export.engines.plan_shapes import plan_profiles
from rcnn_export.engines.precision import FP16, FP32, INT8, Precision
from rcnn_export.engines.quantize import find_layers, layer_inputs, quantize
from rcnn_export.engines.stages import Stage, engine_stages
from torchvision.models.detection import FasterRCNN

CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            name,
            marks=[pytest.mark.xdist_group(name), *[pytest.mark.long] * (not name.startswith("fasterrcnn_"))],
        )
        for name in TORCHVISION_MODELS
    ],
)
def model(request: pytest.FixtureRequest) -> FasterRCNN:
    """A model with random weights."""
    return load_detector(request.param).model


@pytest.fixture(scope="module")
def stages(model: FasterRCNN, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Stage, Path]]:
    """The networks of the model that are not tested with another model, and their ONNX files."""
    folder = tmp_path_factory.mktemp("stages")
    exported = []
    for stage in own_stages(model):
        path = folder / f"{stage.name}.onnx"
        onnx.save(clean_graph(export_onnx(stage)), path)
        exported.append((stage, path))
    return exported


def own_stages(model: FasterRCNN, precision: Precision = FP32) -> list[Stage]:
    """The RPN and the header; for a family with a third network, that one alone."""
    stages = engine_stages(model, precision)
    return stages[2:] or stages


def inputs_of(stage: Stage, batch: int, sides: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(batch)
    if stage.name.endswith("_header"):
        features = torch.randn(batch, 1 + sides[1] // 32, *stage.example[0].shape[2:], generator=random)
        labels = torch.randint(0, 91, (batch, 100), generator=random)
        return (features, labels)[: len(stage.inputs)]
    if stage.name == "rpn":
        coarse = torch.randn(batch, 3, sides[0] // 16, sides[1] // 16, generator=random)
        return (torch.nn.functional.interpolate(coarse, size=sides, mode="bilinear"),)
    channels_hw = stage.example[0].shape[2:]
    corner = torch.rand(batch, sides[0], 2, generator=random) * 300
    size = torch.rand(batch, sides[0], 2, generator=random) * 200
    features = torch.randn(batch, sides[0], *channels_hw, generator=random)
    return features, torch.cat([corner, corner + size], dim=2)


def assert_within_bounds(name: str, ours: np.ndarray, reference: np.ndarray) -> None:
    """Check an output against the FP32 bound for its kind, as rcnn-verify does."""
    bounds = FP32.bounds
    differences = np.abs(ours - reference)
    if name == "rpn_boxes":  # scores that nearly tie may swap rows, but the sorted scores stay the same
        assert differences[:, :, 0].max() <= bounds.score
        np.testing.assert_array_equal(ours[:, :, 5], reference[:, :, 5])
    elif name == "class_scores":
        assert differences.max() <= bounds.score
    elif name == "class_boxes":
        assert (differences.max(axis=-1) <= bounds.boxes_px(reference)).all()
    elif name == "mask_probabilities":
        assert differences.max() <= bounds.mask
    else:  # features and heatmaps
        assert differences.max() <= bounds.array * np.abs(reference).max(), name


@pytest.mark.timeout(600)
def test_onnx_equals_torch_at_any_batch_and_size(stages: list[tuple[Stage, Path]]) -> None:
    for stage, path in stages:
        engine = OnnxEngine(path)
        # 32x64 has fewer anchors than pre_nms_top_n on every level
        for batch, sides in [(1, (32, 64)), (3, (160, 96)), (2, (288, 320))]:
            tensors = inputs_of(stage, batch, sides)
            with torch.no_grad():
                expected = stage.module(*tensors)
            outputs = engine.run(
                {name: tensor.numpy() for name, tensor in zip(stage.inputs, tensors, strict=True)}
            )
            assert list(outputs) == list(stage.outputs)
            for name, theirs in zip(stage.outputs, expected, strict=True):
                ours, reference = outputs[name], theirs.numpy()
                assert ours.shape == reference.shape
                assert ours.dtype == reference.dtype
                assert_within_bounds(name, ours, reference)


def test_graphs_hold_nothing_that_depends_on_data(stages: list[tuple[Stage, Path]]) -> None:
    for stage, path in stages:
        graph = gs.import_onnx(onnx.load(path))
        assert not {node.op for node in graph.nodes} & (DATA_DEPENDENT | NOT_IN_AN_ENGINE)
        assert [tensor.name for tensor in graph.inputs] == list(stage.inputs)
        assert [tensor.name for tensor in graph.outputs] == list(stage.outputs)


@pytest.mark.timeout(600)
def test_tensorrt_parses_and_builds(
    stages: list[tuple[Stage, Path]], model: FasterRCNN, tmp_path: Path
) -> None:
    for stage, path in stages:
        shutil.copyfile(path, tmp_path / "model.onnx")
        build(model, stage, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_tensorrt_parses_and_builds_fp16(model: FasterRCNN, tmp_path: Path) -> None:
    """These plans take minutes. Other tests build the sample's FP16 plans in a few seconds."""
    for stage in own_stages(model, FP16):
        onnx.save(clean_graph(export_onnx(stage)), tmp_path / "model.onnx")
        build(model, stage, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_tensorrt_parses_and_builds_int8(
    model: FasterRCNN, tmp_path: Path, count_int8_layers: Callable[[bytes], int]
) -> None:
    """The ranges are not measured here: they do not affect which kernels are built."""
    for stage in own_stages(model, INT8):
        graph = clean_graph(export_onnx(stage))
        layers = find_layers(graph)
        assert len(layers) > 1
        quantized = quantize(graph, dict.fromkeys(layer_inputs(layers), 4.0))
        expected = sum(len(nodes) for nodes in layers.values())
        assert count_int8_layers(quantized.SerializeToString()) == expected
        onnx.save(quantized, tmp_path / "model.onnx")
        build(model, stage, tmp_path)


def build(model: FasterRCNN, stage: Stage, version_dir: Path) -> None:
    write_manifest(version_dir, {"engines": {}})
    profiles = plan_profiles(model)[stage.name]
    build_plan(version_dir, profiles, PlanOptions(compute_capabilities=CAPABILITIES))
    record = read_plan_record(version_dir)
    assert record and record.compute_capabilities == list(CAPABILITIES)
    check_files(version_dir, record)
