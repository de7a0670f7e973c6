"""FP32 ONNX graph -> the same graph with Q/DQ nodes: INT8 weights by channel, INT8 activations by tensor, symmetric.

TensorRT and OpenVINO both accept it: every zero point is 0, and biases stay in FP32. ``onnxruntime.quantization`` inserts
the nodes; this module decides where. Convolutions and linear layers are quantised, and a residual addition reads the INT8
tensor that the first layer of its block reads. The last layer of each branch, which predicts, and everything after it stay
in FP32, and so do the features of the pyramid that the graph returns.
"""

import importlib.util
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from rcnn_backend.contract.chain_types import LEVEL

from rcnn_export.errors import ExportError

LAYER_TYPES = ("Conv", "Gemm")
PREDICTOR_TYPES = (*LAYER_TYPES, "ConvTranspose")  # of heatmaps
RESIDUAL = "Add"
# OpenVINO drops a bias of zeros, and gives wrong results for an INT8 layer without a bias before another one (2026.4).
# This value is far too small to change any sum in FP32.
NO_BIAS = 1e-20
LARGEST = 127  # the INT8 numbers used are -127 to 127
OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,  # TensorRT supports no INT32 bias
    "OpTypesToExcludeOutputQuantization": list(
        LAYER_TYPES
    ),  # so that the next operation is fused into a layer
}


def check_quantizer() -> None:
    """Checks that ONNX Runtime, which contains the quantiser, is installed.

    Raises:
        ExportError: it is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise ExportError(
            "INT8 needs ONNX Runtime, which is not installed here: pip install 'rcnn-export[int8]'"
        )


def find_layers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The layers that can be quantised, by the name of their weights, in the graph's order.

    A layer that runs on every level of the pyramid is one layer with several nodes.
    """
    nodes, _ = _divide(model)
    single_pixels = _single_pixels(model)
    layers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        if node.input[0] not in single_pixels:  # squeeze-and-excitation gains nothing from INT8
            layers.setdefault(node.input[1].removesuffix(".weight"), []).append(node)
    return layers


def find_ends(model: onnx.ModelProto) -> list[str]:
    """The results of the layers: the features of the pyramid, and the output of each last layer."""
    _, last = _divide(model)
    features = [output.name for output in model.graph.output if output.name.startswith(LEVEL)]
    return [*features, *(node.output[0] for node in last)]


def _divide(model: onnx.ModelProto) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """The layers whose output reaches another layer or the pyramid, and the last layers, each in the graph's order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    goes_on = {output.name for output in model.graph.output if output.name.startswith(LEVEL)}
    inner, last = [], []
    for node in reversed(model.graph.node):
        has_weights = len(node.input) > 1 and node.input[1] in constants
        if not goes_on.isdisjoint(node.output):
            goes_on.update(node.input)
            inner += [node] * (has_weights and node.op_type in LAYER_TYPES)
        elif has_weights and node.op_type in PREDICTOR_TYPES:
            goes_on.add(node.input[0])
            last.append(node)
    return inner[::-1], last[::-1]


def layer_inputs(layers: Mapping[str, list[onnx.NodeProto]]) -> list[str]:
    """The tensors that the layers read, which are to be quantised."""
    return list(dict.fromkeys(node.input[0] for nodes in layers.values() for node in nodes))


def give_back(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The graph with these tensors as additional outputs."""
    inferred = onnx.shape_inference.infer_shapes(model)
    inner = {value.name: value for value in inferred.graph.value_info}
    inferred.graph.output.extend(inner[name] for name in names if name in inner)
    return inferred


def read_ranges(quantized: onnx.ModelProto) -> dict[str, float]:
    """The ``ranges`` that a graph was quantised with."""
    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    return {
        node.input[0]: LARGEST * float(onnx.numpy_helper.to_array(constants[node.input[1]]))
        for node in quantized.graph.node
        if node.op_type == "QuantizeLinear"
    }


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, float], keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """The graph with Q/DQ nodes before its layers.

    Args:
        ranges: the magnitude that becomes 127, for each of ``layer_inputs``.
        keep_float: names of layers from ``find_layers`` that stay in FP32.
    """
    layers = {name: nodes for name, nodes in find_layers(model).items() if name not in keep_float}
    names = {node.name for nodes in layers.values() for node in nodes}
    if not names:
        return model
    inferred = onnx.shape_inference.infer_shapes(model)
    _give_biases(inferred, names)
    outputs = list(inferred.graph.output)
    del inferred.graph.output[:]  # otherwise the graph's outputs would also be quantised
    inferred.graph.value_info.extend(outputs)
    pairs = {name: (np.float32(-ranges[name]), np.float32(ranges[name])) for name in layer_inputs(layers)}
    # Installed by the extra "int8".
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    quantizer = QDQQuantizer(
        inferred,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, pairs),
        nodes_to_quantize=sorted(names),
        nodes_to_exclude=[],
        op_types_to_quantize=list(LAYER_TYPES),
        extra_options=OPTIONS,
    )
    quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    quantized.graph.output.extend(outputs)
    _read_floats(quantized, names)
    quantizer.model.topological_sort()
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def _give_biases(model: onnx.ModelProto, layers: Collection[str]) -> None:
    """Gives each of these layers that has no bias, or one of zeros, a bias of NO_BIAS."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in layers or any(_is_bias(name, constants) for name in node.input[2:]):
            continue
        weights = constants[node.input[1]].dims
        is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        channels = weights[1] if node.op_type == "Gemm" and not is_transposed else weights[0]
        values = np.full(channels, NO_BIAS, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, f"{node.name}_bias"))
        node.input[2:] = [f"{node.name}_bias"]


def _is_bias(name: str, constants: Mapping[str, onnx.TensorProto]) -> bool:
    return name not in constants or bool(onnx.numpy_helper.to_array(constants[name]).any())


def _read_floats(quantized: onnx.ModelProto, layers: Collection[str]) -> None:
    """Makes all nodes except the layers and the residual additions read activations before they are quantised."""
    made_by = {output: node for node in quantized.graph.node for output in node.output}
    for node in quantized.graph.node:
        if node.name in layers or node.op_type == RESIDUAL:
            continue
        for index, name in enumerate(node.input):
            maker = made_by.get(name)
            if maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in made_by:
                node.input[index] = made_by[maker.input[0]].input[0]


def _single_pixels(model: onnx.ModelProto) -> set[str]:
    """The names of the activations with shape [B, C, 1, 1]."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.value_info}
    return {
        name
        for name, dims in shapes.items()
        if len(dims) == 4 and all(dim.dim_value == 1 for dim in dims[2:])
    }
