"""A traced network with fused convolutions -> the same network with convolutions in INT8.

    rcnn.convolution(x, ...)  ->  rcnn.convolution_int8(rcnn.quantize(x, scale), ...)

Weights are INT8 by channel, activations by tensor, all symmetric, as in the ONNX graphs of ``quantize``, whose ranges
are also used here. An activation that only INT8 layers read, as their input or as their residual, is produced in INT8 and
exists in no other type. Any other activation is produced in the type of the network, and quantised once for all INT8 layers
that read it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import rcnn_backend.engines.convolution_int8  # noqa: F401  defines the operators
import torch
from torch import Tensor, fx

from rcnn_export.engines.constants import Constants
from rcnn_export.engines.fuse import LAYER, PLACE, SIZE
from rcnn_export.engines.quantize import LARGEST

FUSED, INT8 = torch.ops.rcnn.convolution.default, torch.ops.rcnn.convolution_int8.default
QUANTIZE = torch.ops.rcnn.quantize.default
CHANNELS = 16  # the number of INT8 values that tensor cores read at once
Layers = Mapping[str, Sequence[float]]  # by a layer's name, the range of its input for each of its calls


@torch.no_grad()
def quantize_convolutions(fused: fx.GraphModule, layers: Layers) -> tuple[fx.GraphModule, int]:
    """The network with these layers in INT8, and the number of its INT8 convolutions.

    Grouped convolutions, and those whose numbers of channels are not multiples of CHANNELS, stay as they are.

    Args:
        fused: the result of ``fuse_convolutions``. Its graph is changed.
        layers: a layer that does not have one range for each of its calls also stays as it is.
    """
    constants = Constants(fused)
    calls = [node for node in fused.graph.nodes if node.target == FUSED]
    network = _Network(_read_scales(calls, constants, layers), constants)
    for node in calls:
        if node in network.scales:
            network.convert(node)
    return constants.used_module(), len(network.scales)


def _read_scales(calls: Sequence[fx.Node], constants: Constants, layers: Layers) -> dict[fx.Node, float]:
    """The calls that become INT8, each with the scale of its input."""
    by_layer: dict[str, list[fx.Node]] = defaultdict(list)
    for node in sorted(calls, key=lambda node: int(node.meta[PLACE])):
        by_layer[node.meta[LAYER]].append(node)
    scales: dict[fx.Node, float] = {}
    for layer, nodes in by_layer.items():
        ranges = layers.get(layer, ())
        if len(nodes) == len(ranges) and _is_suitable(nodes[0], constants):
            scales |= {node: each / LARGEST or 1.0 for node, each in zip(nodes, ranges, strict=True)}
    return scales


def _is_suitable(node: fx.Node, constants: Constants) -> bool:
    weight = constants.value(node.args[1])
    groups = node.args[-2]
    assert isinstance(groups, int)
    return weight is not None and groups == 1 and all(size % CHANNELS == 0 for size in weight.shape[:2])


class _Network:
    """The graph while it is converted to INT8.

    Attributes:
        scales: the scale of the input of each convolution that becomes INT8.
    """

    def __init__(self, scales: Mapping[fx.Node, float], constants: Constants) -> None:
        self.scales = scales
        self._constants = constants
        self._scale_of = {_input(node): scale for node, scale in scales.items()}  # of an activation
        self._weights: dict[str, tuple[str, Tensor]] = {}  # the name of the INT8 weights, and their scales
        self._as_int8: dict[fx.Node, fx.Node] = {}  # activations; one that is produced in INT8 maps to itself

    def convert(self, node: fx.Node) -> None:
        """Replaces a convolution by the INT8 operator. The nodes that it reads must already be converted."""
        _, weight, bias, residual, *geometry, relu = node.args
        is_int8 = self._is_made_in_int8(node)
        dtype = torch.int8 if is_int8 else node.meta["val"].dtype
        own_scale = self._scale_of[node] if is_int8 else 1.0
        name, weight_scale = self._weight(weight)
        bias_value = self._constants.value(bias)
        scale = self.scales[node] * weight_scale / own_scale
        residual_scale = None
        if isinstance(residual, fx.Node):
            factor = 1.0
            if residual in self._scale_of:
                residual, factor = self._quantized(residual), self._scale_of[residual]
            residual_scale = torch.full_like(scale, factor / own_scale)
        x = self._quantized(_input(node))
        with node.graph.inserting_before(node):
            arguments = (
                x,
                node.graph.get_attr(name),
                self._add(node, "bias", None if bias_value is None else bias_value.float() / own_scale),
                residual,
                self._add(node, "scale", scale),
                self._add(node, "residual_scale", residual_scale),
            )
            made = node.graph.call_function(INT8, (*arguments, *geometry, relu, dtype))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        if node in self._scale_of:
            self._scale_of[made] = self._scale_of[node]
        if is_int8:
            self._as_int8[made] = made
        node.graph.erase_node(node)

    def _is_made_in_int8(self, node: fx.Node) -> bool:
        """Whether only INT8 convolutions read it, and one of them reads it as its input, so that it has a scale."""
        readers = [user for user in node.users if user.target != SIZE]
        return node in self._scale_of and all(reader in self.scales for reader in readers)

    def _quantized(self, activation: fx.Node) -> fx.Node:
        """The activation in INT8."""
        if activation not in self._as_int8:
            after = activation.next
            while after.op == "placeholder":
                after = after.next
            with activation.graph.inserting_before(after):
                arguments = (activation, self._scale_of[activation])
                self._as_int8[activation] = activation.graph.call_function(QUANTIZE, arguments)
        return self._as_int8[activation]

    def _weight(self, weight: Any) -> tuple[str, Tensor]:
        """The name of the INT8 weights, and their scales FP32 [K]."""
        name = str(weight.target)
        if name not in self._weights:
            value = self._constants.value(weight)
            assert value is not None
            value = value.float()
            scale = value.abs().amax(dim=(1, 2, 3)) / LARGEST
            scale[scale == 0] = 1.0
            rounded = (value / scale[:, None, None, None]).round().to(torch.int8)
            self._weights[name] = self._constants.add(f"{weight.name}_int8", rounded), scale
        return self._weights[name]

    def _add(self, node: fx.Node, name: str, value: Tensor | None) -> fx.Node | None:
        if value is None:
            return None
        return node.graph.get_attr(self._constants.add(f"{node.name}_{name}", value))


def _input(node: fx.Node) -> fx.Node:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return x
