"""Swin backbones equal torchvision's, even at sizes that one window covers, and one trace serves all sizes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from rcnn_backend.engines.onnx import OnnxEngine
from rcnn_export.engines.graph_checks import clean_graph
from rcnn_export.engines.onnx_export import export_onnx
from rcnn_export.engines.stages import Stage
from rcnn_export.engines.swin import traceable_swin
from torch import nn
from torch.export import Dim
from torchvision.models.swin_transformer import (
    PatchMerging,
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)

KINDS = {"v1": (SwinTransformerBlock, PatchMerging), "v2": (SwinTransformerBlockV2, PatchMergingV2)}
SIZES_HW = [
    (32, 32),
    (224, 56),
    (64, 320),
    (160, 288),
]  # a window covers 28 px, and after the first patch merging 56 px


def swin(kind: str) -> nn.Module:
    block, merging = KINDS[kind]
    torch.manual_seed(0)
    return SwinTransformer(
        [4, 4], 8, [2, 2], [1, 2], [7, 7], block=block, downsample_layer=merging, num_classes=2
    ).features.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_hw", [*SIZES_HW, (101, 59)])
@torch.no_grad()
def test_equals_torchvisions(kind: str, size_hw: tuple[int, int]) -> None:
    backbone, images = swin(kind), torch.rand(2, 3, *size_hw)
    expected = backbone(images)
    with traceable_swin():
        torch.testing.assert_close(backbone(images), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.long
@torch.no_grad()
def test_one_graph_answers_for_every_size(tmp_path: Path) -> None:
    backbone = swin("v1")
    rows, columns = Dim("rows", min=1, max=256), Dim("columns", min=1, max=256)
    axes = {"input": ["batch", 3, "height", "width"], "features": ["batch", "height_8", "width_8", 16]}
    example = torch.rand(2, 3, 256, 320)
    shapes = ({0: Dim("batch", min=1, max=128), 2: 32 * rows, 3: 32 * columns},)
    stage = Stage(
        "swin", backbone, (example,), (tuple(example.shape),), shapes, ["input"], ["features"], axes
    )
    onnx.save(clean_graph(export_onnx(stage)), tmp_path / "model.onnx")
    engine = OnnxEngine(tmp_path / "model.onnx")
    for height, width in SIZES_HW:
        images = torch.rand(3, 3, height // 32 * 32, -(-width // 32) * 32)
        (features,) = engine.run({"input": images.numpy()}).values()
        np.testing.assert_allclose(features, backbone(images).numpy(), atol=1e-5)
