"""Ranges that are measured while a graph runs on one batch after another, of any size."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from rcnn_export.engines.ranges import CalibratingEngine

GRAPH = """
g (float[n, 1, h, w] input) => (float[n, 1, h, w] feature_0)
{
    a = Conv (input, a_weight)
    a_relu = Relu (a)
    feature_0 = Conv (a_relu, b_weight)
}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    graph = onnx.parser.parse_graph(GRAPH)
    for name, value in (("a_weight", -2.0), ("b_weight", 3.0)):
        weights = np.full((1, 1, 1, 1), value, np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_the_largest_magnitude_of_all_batches(path: Path) -> None:
    engine = CalibratingEngine(path, "max")
    landscape = np.linspace(-1, 4, 24, dtype=np.float32).reshape(1, 1, 4, 6)
    upright = np.linspace(-3, 2, 40, dtype=np.float32).reshape(1, 1, 8, 5)
    for image in (landscape, upright):
        outputs = engine.run({"input": image})
        assert list(outputs) == ["feature_0"]
        np.testing.assert_allclose(outputs["feature_0"], 3 * np.maximum(-2 * image, 0), rtol=1e-6)
    assert engine.ranges() == {"input": 4.0, "a_relu": 6.0}


def test_a_percentile_leaves_outliers_out(path: Path) -> None:
    engine = CalibratingEngine(path, "percentile")
    image = np.random.default_rng(0).uniform(-1, 1, (1, 1, 200, 300)).astype(np.float32)
    engine.run({"input": image})
    image = image.transpose(0, 1, 3, 2).copy()
    image[0, 0, 0, 0] = -50
    engine.run({"input": image})
    found = engine.ranges()
    assert found == {"input": pytest.approx(1, rel=0.05), "a_relu": pytest.approx(2, rel=0.05)}
