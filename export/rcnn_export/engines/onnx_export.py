"""torch -> ONNX: the RPN and the header as graphs with dynamic batch, height and width."""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torchvision.models.detection import FasterRCNN

from rcnn_export.detector.split import (
    HeaderModule,
    RpnModule,
    backbone_features,
    pooled_levels,
    roi_pooler,
)
from rcnn_export.engines.half_precision import to_half
from rcnn_export.engines.options import FP16, FP32

OPSET = 20
DTYPES = {FP32: torch.float32, FP16: torch.float16}
MAX_BATCH = 128
MAX_SIDE_PX = 8192
TYPICAL_BATCH = 8


@dataclass(frozen=True)
class Stage:
    """A module on its way to an engine: example inputs, which axes vary, and the tensors' names.

    ``typical``: the shape of each input that a compiler should choose its kernels for. ``axes`` names
    each axis of each tensor; a name that is no number is dynamic.
    """

    name: str
    module: nn.Module
    example: tuple[torch.Tensor, ...]
    typical: tuple[tuple[int, ...], ...]
    dynamic_shapes: tuple[dict[int, Any], ...]
    inputs: Sequence[str]
    outputs: Sequence[str]
    axes: dict[str, list[str | int]]


def rpn_stage(model: FasterRCNN, precision: str = FP32) -> Stage:
    """``input`` [B, 3, H, W] with H and W multiples of the detector's ``size_divisible``."""
    divisor = model.transform.size_divisible
    batch = Dim("batch", min=1, max=MAX_BATCH)
    rows, columns = (Dim(name, min=1, max=MAX_SIDE_PX // divisor) for name in ("rows", "columns"))
    features = backbone_features(model)
    axes: dict[str, list[str | int]] = {
        "input": ["batch", 3, "height", "width"],
        "rpn_boxes": ["batch", "anchors", 6],
    }
    for index, level in enumerate(pooled_levels(model)):
        name = f"feature_{index}"
        axes[name] = ["batch", features[level].shape[1], f"{name}_height", f"{name}_width"]
    axes["rpn_samples"] = ["batch", "samples"]
    return Stage(
        "rpn",
        _in_precision(RpnModule(model), precision),
        (torch.rand(2, 3, 8 * divisor, 10 * divisor, dtype=DTYPES[precision]),),
        ((TYPICAL_BATCH, 3, *_typical_size_hw(model)),),
        ({0: batch, 2: divisor * rows, 3: divisor * columns},),
        ["input"],
        list(axes)[1:],
        axes,
    )


def header_stage(model: FasterRCNN, precision: str = FP32) -> Stage:
    """``roialigned_feature`` [B, R, C, h, w] and ``proposals`` [B, R, 4]."""
    channels = backbone_features(model)[pooled_levels(model)[0]].shape[1]
    output_size = roi_pooler(model).output_size
    typical_pooled = TYPICAL_BATCH, model.rpn.post_nms_top_n(), channels, *output_size
    batch = Dim("batch", min=1, max=MAX_BATCH)
    rois = Dim("rois", min=1, max=1 << 14)
    return Stage(
        "header",
        _in_precision(HeaderModule(model), precision),
        (torch.rand(2, 6, channels, *output_size, dtype=DTYPES[precision]), torch.rand(2, 6, 4)),
        (typical_pooled, (*typical_pooled[:2], 4)),
        ({0: batch, 1: rois}, {0: batch, 1: rois}),
        ["roialigned_feature", "proposals"],
        ["class_scores", "class_boxes", "header_samples"],
        {
            "roialigned_feature": ["batch", "rois", channels, *output_size],
            "proposals": ["batch", "rois", 4],
            "class_scores": ["batch", "rois", "classes"],
            "class_boxes": ["batch", "rois", "classes", 4],
            "header_samples": ["batch", "samples"],
        },
    )


def _typical_size_hw(model: FasterRCNN) -> tuple[int, int]:
    """Of a picture as wide as ``max_size`` allows, padded."""
    transform = model.transform
    width, height = transform.fixed_size or (transform.max_size, transform.min_size[-1])
    divisor = transform.size_divisible
    return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor


def _in_precision(module: RpnModule | HeaderModule, precision: str) -> nn.Module:
    if precision == FP16:
        for name in module.NETWORKS:
            setattr(module, name, to_half(getattr(module, name)))
    return module.eval()


@torch.no_grad()
def export_program(stage: Stage) -> ExportedProgram:
    """The stage as an ATen graph, from which every engine is made."""
    with _quiet():
        return torch.export.export(stage.module, stage.example, dynamic_shapes=stage.dynamic_shapes)


def export_onnx(stage: Stage) -> onnx.ModelProto:
    """The stage as an ONNX graph with named axes; graph_checks cleans and judges it."""
    with _quiet():
        program = torch.onnx.export(
            export_program(stage),
            input_names=stage.inputs,
            output_names=stage.outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.graph.name = stage.name
    for value in (*model.graph.input, *model.graph.output):
        for dim, axis in zip(value.type.tensor_type.shape.dim, stage.axes[value.name], strict=True):
            if not dim.HasField("dim_value"):
                dim.dim_param = str(axis)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress notes and its own deprecation warnings help nobody here."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
