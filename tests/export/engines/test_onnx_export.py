"""The RPN's graph takes pictures of every size that the detector's transform can produce."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from rcnn_backend.engines.onnx import OnnxEngine
from rcnn_export.detector.load import load_detector
from rcnn_export.engines.graph_checks import clean_graph
from rcnn_export.engines.onnx_export import export_onnx
from rcnn_export.engines.stages import engine_stage


@pytest.mark.parametrize(
    ("size_divisible", "sizes_hw"),
    [(1, [(60, 80), (7, 41), (301, 417)]), (20, [(60, 80), (20, 40), (300, 420)])],
)
@pytest.mark.long
def test_pictures_that_are_not_padded_to_a_multiple_of_the_stride(
    size_divisible: int, sizes_hw: list[tuple[int, int]], tmp_path: Path
) -> None:
    model = load_detector("rcnn_export.digits.detector:digits_detector").model
    model.transform.size_divisible = size_divisible
    stage = engine_stage(model, "rpn")
    onnx.save(clean_graph(export_onnx(stage)), tmp_path / "model.onnx")
    engine = OnnxEngine(tmp_path / "model.onnx")
    random = torch.Generator().manual_seed(0)
    for size_hw in sizes_hw:
        images = torch.rand(2, 3, *size_hw, generator=random)
        with torch.no_grad():
            expected = dict(zip(stage.outputs, stage.module(images), strict=True))
        outputs = engine.run({"input": images.numpy()})
        scores = expected["rpn_boxes"][:, :, 0].numpy()
        np.testing.assert_allclose(outputs["rpn_boxes"][:, :, 0], scores, atol=1e-4)
        for level in range(4):
            theirs = expected[f"feature_{level}"].numpy()
            np.testing.assert_allclose(outputs[f"feature_{level}"], theirs, atol=1e-5 * np.abs(theirs).max())
