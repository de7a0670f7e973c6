"""A graph that no engine accepts is refused; the error names the operator, the node and the module of its origin."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from rcnn_export.engines.graph_checks import clean_graph
from rcnn_export.errors import ExportError
from torch import Tensor, nn


class Finder(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return torch.nonzero(input)


class Doubler(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.double() * 3.3


class Network(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input: Tensor) -> Tensor:
        return self.inner(input + 1)


def export(inner: nn.Module) -> onnx.ModelProto:
    program = torch.onnx.export(Network(inner).eval(), (torch.rand(4, 4),), dynamo=True, verbose=False)
    return program.model_proto


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (
            Finder(),
            r"operator NonZero \(node 'node_NonZero_1' of module 'inner'\): the shape of its output depends",
        ),
        (Doubler(), r"of module 'inner'\) computes in float64"),
    ],
)
def test_refused(inner: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        clean_graph(export(inner))


def test_an_operator_that_needs_a_plugin_is_refused() -> None:
    names = ["feature", "boxes", "images"]
    graph = onnx.parser.parse_graph(
        "g (float[1,8,9,9] feature, float[n,4] boxes, int64[n] images) => (float[n,8,7,7] pooled) "
        "{ pooled = RoiAlign <output_height=7, output_width=7> (feature, boxes, images) }"
    )
    assert [value.name for value in graph.input] == names
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(
        ExportError, match=r"operator RoiAlign .* TensorRT has no such operator without a plugin"
    ):
        clean_graph(model)


def test_constants_are_folded_and_dead_nodes_dropped() -> None:
    graph = onnx.parser.parse_graph(
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {3, 4}> "
        "{ c = Add (a, b) unused = Neg (x) y = Mul (x, c) }"
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    assert [node.op_type for node in clean_graph(model).graph.node] == ["Mul"]


class Pool(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(input[None, None], 1)


def test_a_mean_over_a_plane_is_taken_row_by_row() -> None:
    """On these values, ONNX Runtime's mean over two axes at once has an error of 2e-5."""
    plane = np.full((160, 150), 0.1, np.float32)
    program = torch.onnx.export(Pool().eval(), (torch.from_numpy(plane),), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(clean_graph(program.model_proto).SerializeToString())
    (mean,) = session.run(None, {session.get_inputs()[0].name: plane})
    assert mean.shape == (1, 1, 1, 1)
    np.testing.assert_allclose(mean.item(), np.float32(0.1), rtol=5e-6)
