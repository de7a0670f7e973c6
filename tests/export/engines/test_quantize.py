"""Where Q/DQ nodes are inserted, which scales they have, and what stays in FP32."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from rcnn_backend.engines.onnx import OnnxEngine
from rcnn_backend.operators import openvino_runtime
from rcnn_export.engines.quantize import (
    check_quantizer,
    find_ends,
    find_layers,
    give_back,
    layer_inputs,
    quantize,
    read_ranges,
)
from rcnn_export.errors import ExportError

GRAPH = """
g (float[n, 2, 4, 4] input) => (float[n, 2, 4, 4] feature_0, float[n, 3, 4, 4] scores, float[n, 2] samples)
{
    a = Conv (input, body__a__weight, bias)
    a_relu = Relu (a)
    b = Conv (a_relu, body__b__weight)
    sum = Add (b, a_relu)
    feature_0 = Relu (sum)
    samples = ReduceMax <keepdims = 0> (feature_0, axes)
    pooled = GlobalAveragePool (feature_0)
    squeezed = Conv (pooled, body__se__weight)
    gate = Sigmoid (squeezed)
    gated = Mul (feature_0, gate)
    h = Conv (gated, head__conv__weight)
    h_relu = Relu (h)
    h2 = Conv (feature_0, head__conv__weight)
    both = Add (h_relu, h2)
    scores = Conv (both, head__scores__weight)
}
"""
RANGES = {"input": 2.54, "a_relu": 12.7, "gated": 1.27, "feature_0": 5.08}


def make_model() -> onnx.ModelProto:
    graph = onnx.parser.parse_graph(GRAPH)
    random = np.random.default_rng(0)
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
        node.input[:] = [name.replace("__", ".") for name in node.input]  # the parser accepts no dots
    rows = {
        "body.a.weight": 2,
        "body.b.weight": 2,
        "body.se.weight": 2,
        "head.conv.weight": 2,
        "head.scores.weight": 3,
    }
    for name, count in rows.items():
        weights = random.normal(size=(count, 2, 1, 1)).astype(np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0.5, -0.25], np.float32), "bias"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3]), "axes"))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def reads_int8(model: onnx.ModelProto, op_type: str) -> list[list[str]]:
    """The quantised inputs of each node of this type."""
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    return [
        [name for name in node.input if makers.get(name) == "DequantizeLinear"]
        for node in model.graph.node
        if node.op_type == op_type
    ]


def test_predictors_are_no_layers() -> None:
    model = make_model()
    layers = find_layers(model)
    assert {name: len(nodes) for name, nodes in layers.items()} == {
        "body.a": 1,
        "body.b": 1,
        "head.conv": 2,
    }
    assert layer_inputs(layers) == ["input", "a_relu", "gated", "feature_0"]
    assert find_ends(model) == ["feature_0", "scores"]


def test_the_layer_before_a_predictor_of_heatmaps_is_one() -> None:
    graph = onnx.parser.parse_graph("""
        g (float[n, 2, 4, 4] features) => (float[n, 1, 16, 16] heatmaps)
        {
            a = Conv (features, a_weight)
            a_relu = Relu (a)
            low = ConvTranspose <strides = [2, 2]> (a_relu, predictor_weight)
            heatmaps = Resize <mode = "linear"> (low, none, scales)
        }
    """)
    graph.node[-1].input[1] = ""
    for name, shape in (("a_weight", (2, 2, 1, 1)), ("predictor_weight", (2, 1, 2, 2))):
        graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    graph.node[0].name = "Conv_0"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    assert list(find_layers(model)) == ["a_weight"]
    assert find_ends(model) == ["low"]
    quantized = quantize(model, {"features": 1.0})
    assert len(reads_int8(quantized, "Conv")[0]) == 2
    assert reads_int8(quantized, "ConvTranspose") == [[]]


def test_everything_is_symmetric_and_weights_have_a_scale_for_each_channel() -> None:
    model = make_model()
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    quantized = quantize(model, RANGES)
    found = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer}
    nodes = [n for n in quantized.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(not found[node.input[2]].any() and found[node.input[2]].dtype == np.int8 for node in nodes)
    assert read_ranges(quantized) == pytest.approx(RANGES)
    for name in ("body.a.weight", "body.b.weight", "head.conv.weight"):
        (node,) = (node for node in nodes if node.input[0] == f"{name}_quantized")
        largest = np.abs(constants[name]).max(axis=(1, 2, 3))
        np.testing.assert_allclose(found[node.input[1]], largest / 127, rtol=1e-6)
        assert found[f"{name}_quantized"].dtype == np.int8
        expected = np.round(constants[name] / (largest / 127)[:, None, None, None])
        np.testing.assert_array_equal(found[f"{name}_quantized"], expected)
    assert found["bias"].dtype == np.float32


def test_other_operators_read_fp32_and_a_residual_reads_the_input_of_its_block() -> None:
    quantized = quantize(make_model(), RANGES)
    a, b, squeezed, h, h2, scores = reads_int8(quantized, "Conv")
    assert [len(inputs) for inputs in (a, b, squeezed, h, h2, scores)] == [2, 2, 0, 2, 2, 0]
    residual, joined = reads_int8(quantized, "Add")
    assert residual == [b[0]] and joined == []
    for op_type in ("ReduceMax", "Mul", "GlobalAveragePool", "Relu"):
        assert not any(reads_int8(quantized, op_type))
    assert [output.name for output in quantized.graph.output] == ["feature_0", "scores", "samples"]


def test_samples_are_those_of_the_features_given_back() -> None:
    model = make_model()
    image = np.random.default_rng(1).normal(size=(1, 2, 4, 4)).astype(np.float32)
    features, scores, samples = ReferenceEvaluator(quantize(model, RANGES)).run(None, {"input": image})
    np.testing.assert_array_equal(samples, features.max(axis=(2, 3)))
    expected = ReferenceEvaluator(model).run(None, {"input": image})
    for ours, theirs in zip((features, scores), expected, strict=False):
        assert 0 < np.abs(ours - theirs).max() < 0.1 * np.abs(theirs).max()


def test_layers_that_are_kept_stay_as_they_were() -> None:
    model = make_model()
    quantized = quantize(model, RANGES, keep_float=["body.a", "head.conv"])
    assert [len(inputs) for inputs in reads_int8(quantized, "Conv")] == [0, 2, 0, 0, 0, 0]
    assert list(read_ranges(quantized)) == ["a_relu"]
    assert quantize(model, {}, keep_float=list(find_layers(model))) == model


def test_a_layer_without_a_bias_gets_one_that_changes_nothing() -> None:
    quantized = quantize(make_model(), RANGES)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer}
    biases = [
        constants[node.input[2]] if len(node.input) == 3 else None
        for node in quantized.graph.node
        if node.op_type == "Conv"
    ]
    assert biases[0] is not None and biases[0].tolist() == [0.5, -0.25]
    for given in (1, 3, 4):  # the quantised ones
        assert biases[given].tolist() == [pytest.approx(1e-20)] * 2
    assert biases[2] is None and biases[5] is None


def test_a_layer_that_only_ever_reads_zeros_is_quantised_too() -> None:
    quantized = quantize(make_model(), RANGES | {"gated": 0.0})
    scales = [onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer if t.name.endswith("_scale")]
    assert all((scale > 0).all() and np.isfinite(scale).all() for scale in scales)


@pytest.mark.parametrize("bias", [None, 0.0])
@pytest.mark.parametrize("has_vnni", [None, False])
def test_openvino_computes_what_the_nodes_say(
    bias: float | None, has_vnni: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except for rounding: a sum halfway between two INT8 numbers may be rounded to either.

    ``has_vnni``: None for what this processor has.
    """
    if has_vnni is not None:
        monkeypatch.setattr(openvino_runtime, "sums_int8_exactly", lambda: has_vnni)
    names = ["input", "a", "b", "c", "feature_0"]
    nodes, weights = [], []
    random = np.random.default_rng(0)
    for number, (read, made) in enumerate(itertools.pairwise(names)):
        biases = [] if bias is None else [f"{made}.bias"]
        conv = onnx.helper.make_node("Conv", [read, f"{made}.weight", *biases], [f"{made}_sum"], pads=[1] * 4)
        nodes += [conv, onnx.helper.make_node("Relu", [f"{made}_sum"], [made])]
        conv.name = f"conv_{number}"
        values = random.normal(size=(32, 32, 3, 3)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(values, f"{made}.weight"))
        weights += [onnx.numpy_helper.from_array(np.full(32, bias, np.float32), name) for name in biases]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 32, "h", "w"])
        for name in (names[0], names[-1])
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    image = random.normal(size=(1, 32, 16, 20)).astype(np.float32)
    inner = ReferenceEvaluator(give_back(model, names[1:-1])).run(None, {"input": image})
    ranges = {name: float(abs(array).max()) for name, array in zip(names, [image, *inner[1:]], strict=False)}
    quantized = quantize(model, ranges)
    onnx.save(quantized, tmp_path / "model.onnx")
    (expected,) = ReferenceEvaluator(quantized).run(None, {"input": image})
    found = OnnxEngine(tmp_path / "model.onnx").run({"input": image})["feature_0"]
    np.testing.assert_allclose(found, expected, atol=0.03 * float(expected.max()))


def test_without_onnx_runtime_int8_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install 'rcnn-export\[int8\]'"):
        check_quantizer()
