"""If one layer of a graph is changed, that layer is named. ONNX Runtime stands in for TensorRT."""

import numpy as np
import onnx
from rcnn_export.verify.bisect import first_difference, keep_all_outputs

GRAPH = """
    g (float16[n, 4] x) => (float16[n, 4] y) {
        [scale] a = Mul (x, factor)
        [shift] b = Add (a, offset)
        [size] c = Shape (b)
        [last] y = Expand (b, c)
    }
"""


def make_model(factor: float, offset: float) -> onnx.ModelProto:
    graph = onnx.parser.parse_graph(GRAPH)
    for name, value in (("factor", factor), ("offset", offset)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], np.float16), name))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def test_the_first_layer_that_differs() -> None:
    """At x = 2 and 4 the first model has b = 7 and 13; an offset of 1.5 makes each 0.5 larger."""
    x = {"x": np.array([[2, 4, 2, 4]], np.float16)}
    model = make_model(3, 1)
    assert first_difference(model, keep_all_outputs(make_model(3, 1)), x, 0) is None
    found = first_difference(model, keep_all_outputs(make_model(3, 1.5)), x, 0.03)
    assert found and (found.node, found.operator, found.output) == ("shift", "Add", "b")
    assert found.difference == 0.5 / 13
    assert first_difference(model, keep_all_outputs(make_model(3, 1.5)), x, 0.04) is None
    found = first_difference(model, keep_all_outputs(make_model(2, 1)), x, 0.03)
    assert found and str(found).startswith(
        "the first layer that differs is scale (Mul): its output a differs by 3.3e-01"
    )


def test_nan_is_a_difference() -> None:
    found = first_difference(
        make_model(1, 0), keep_all_outputs(make_model(np.nan, 0)), {"x": np.ones((1, 4), np.float16)}, 0.5
    )
    assert found and found.node == "scale"
