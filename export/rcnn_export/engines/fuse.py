"""Finds each convolution and the operations after it in a traced network, and replaces them by one operator.

    conv2d -> batch normalisation, or a factor and a summand for each channel -> + residual -> ReLU

becomes ``rcnn_backend.engines.convolution``. Constants are folded into weight and bias. Each part except the
convolution may be missing. Everything else stays as torch traced it.
"""

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import rcnn_backend.engines.convolution  # noqa: F401  defines the operator
import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from rcnn_export.engines.constants import Constants

aten = torch.ops.aten
SIZE = aten.sym_size.int
LAYER = "layer"  # in a node's ``meta``: the layer whose weights it has
PLACE = "place"  # also in ``meta``: its position among all fused convolutions
CONVOLUTION, NORMALIZATION = aten.conv2d.default, aten.batch_norm.default
ADD, MULTIPLY = (aten.add.Tensor, aten.add_.Tensor), (aten.mul.Tensor, aten.mul_.Tensor)
RELU = (aten.relu.default, aten.relu_.default)
DEFAULTS = (None, [1, 1], [0, 0], [1, 1], 1)  # of conv2d: bias, stride, padding, dilation, groups


@dataclass(frozen=True)
class Fusions:
    """How many convolutions became the operator, and how many others of each kind there are."""

    fused: int
    left: dict[str, int]
    int8: int = 0  # of those fused

    @property
    def total(self) -> int:
        """How many convolutions there are."""
        return self.fused + sum(self.left.values())

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.left.items())
        others = f"; PyTorch runs the others as they are ({kinds})" if kinds else ""
        int8 = f", {self.int8} of them in INT8" if self.int8 else ""
        return f"{self.fused} of {self.total} convolutions are fused with what follows them{int8}{others}"


@torch.no_grad()
def fuse_convolutions(traced: fx.GraphModule) -> tuple[fx.GraphModule, Fusions]:
    """The traced network with fused convolutions, and how many there are.

    In depthwise convolutions constants are folded, but torch runs them, because cuDNN has no graphs for them.

    Args:
        traced: ``torch.export.export(...).module()``. Its graph is changed.
    """
    graph, constants = traced.graph, Constants(traced)
    fused, left = 0, Counter[str]()
    for node in list(graph.nodes):
        if node.op != "call_function" or not str(node.target).startswith("aten.conv"):
            continue
        if not _is_known(node, constants):
            left[str(node.target).split(".")[1]] += 1
        elif _is_depthwise(node):
            left["depthwise"] += 1
            _Chain(node, constants).fold().replace(CONVOLUTION)
        else:
            layer = _layer_of(node)
            made = _Chain(node, constants).fold().extend().replace(torch.ops.rcnn.convolution.default)
            made.meta |= {LAYER: layer, PLACE: fused}
            fused += 1
    for node in graph.nodes:
        if node.target == aten.view.default:
            node.target = aten.reshape.default  # a view is not always possible in channels-last order
    graph.eliminate_dead_code()
    return constants.used_module(), Fusions(fused, dict(left))


def _is_known(node: fx.Node, constants: Constants) -> bool:
    """Whether it is a conv2d of a batch, with numeric padding and with constant weight and bias."""
    if node.target != CONVOLUTION or node.kwargs or node.meta["val"].ndim != 4:
        return False
    parameters = (node.args[1], _arguments(node)[0])
    return all(each is None or constants.value(each) is not None for each in parameters)


def _is_depthwise(node: fx.Node) -> bool:
    (x, *_), groups = node.args, _arguments(node)[-1]
    assert isinstance(x, fx.Node)
    return bool(1 < groups == x.meta["val"].shape[1])


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    """Bias, stride, padding, dilation and groups of a conv2d."""
    given = node.args[2:]
    return (*given, *DEFAULTS[len(given) :])


class _Chain:
    """A convolution, and the nodes after it that become one operator with it.

    Each node is the only user of the one before, except for nodes that read a size, which follows from the input's size.
    """

    def __init__(self, convolution: fx.Node, constants: Constants) -> None:
        self._constants = constants
        self._nodes = [convolution]
        self._value = convolution.meta["val"]
        bias = constants.value(_arguments(convolution)[0])
        self._scale: Tensor | None = None  # FP64 [K], one for each kernel, None for 1
        self._shift = None if bias is None else bias.double()  # FP64 [K], None for 0
        self._is_folded = False  # whether scale and shift differ from the convolution's own
        self._residual: fx.Node | None = None
        self._has_relu = False

    def fold(self) -> "_Chain":
        """Adds batch normalisation, and factors and summands that are constant for each channel."""
        while (node := self._next()) is not None:
            if node.target == NORMALIZATION:
                affine = self._read_normalization(node)
            else:
                affine = self._read_constant(node)
            if affine is None:
                return self
            scale, shift = affine
            if scale is not None:
                self._scale = scale if self._scale is None else self._scale * scale
                self._shift = None if self._shift is None else self._shift * scale
            if shift is not None:
                self._shift = shift if self._shift is None else self._shift + shift
            self._is_folded = True
            self._nodes.append(node)
        return self

    def extend(self) -> "_Chain":
        """Adds a residual of the result's shape, and ReLU."""
        node = self._next()
        if node is not None and node.target in ADD and self._is_residual(other := self._other(node)):
            self._residual = other
            self._nodes.append(node)
            node = self._next()
        if node is not None and node.target in RELU:
            self._has_relu = True
            self._nodes.append(node)
        return self

    def replace(self, target: Any) -> fx.Node:
        """Replaces the nodes by one call of ``target``, and returns it."""
        convolution, last = self._nodes[0], self._nodes[-1]
        x, weight = convolution.args[:2]
        bias, *geometry = _arguments(convolution)
        with last.graph.inserting_before(last):
            if self._is_folded:
                weight, bias = self._folded()
            if target == CONVOLUTION:
                fused = last.graph.call_function(target, (x, weight, bias, *geometry))
            else:
                more = (self._residual, *geometry, self._has_relu)
                fused = last.graph.call_function(target, (x, weight, bias, *more))
        fused.meta = dict(last.meta)
        last.replace_all_uses_with(fused)
        self._compute_sizes()
        for node in reversed(self._nodes):
            last.graph.erase_node(node)
        return fused

    def _next(self) -> fx.Node | None:
        """The only user of the last node, if it can run together with the convolution."""
        last = self._nodes[-1]
        users = [user for user in last.users if user.target != SIZE]
        if len(users) != 1:
            return None
        (user,) = users
        value = user.meta.get("val")
        if (
            user.args.count(last) != 1
            or user.kwargs
            or not isinstance(value, Tensor)
            or value.dtype != self._value.dtype
        ):
            return None
        if _is_mutable(user) and user.args[0] is not last:
            return None
        # The convolution's input, or the residual, may be overwritten before the user runs.
        node = self._nodes[0].next
        while node is not user:
            if node not in self._nodes and _is_mutable(node):
                return None
            node = node.next
        return user

    def _other(self, node: fx.Node) -> Any:
        """The value that a node adds to the last one, or multiplies it by."""
        left, right = node.args
        return right if left is self._nodes[-1] else left

    def _read_normalization(self, node: fx.Node) -> tuple[Tensor | None, Tensor | None] | None:
        """Scale and shift of a batch normalisation; None if it uses the statistics of the batch."""
        _, weight, bias, mean, variance, training, _, eps, *_ = node.args
        values = [self._constants.value(each) for each in (weight, bias, mean, variance)]
        if training or values[2] is None or values[3] is None:
            return None
        assert isinstance(eps, float)
        scale = torch.rsqrt(values[3].double() + eps)
        scale = scale if values[0] is None else scale * values[0].double()
        shift = -values[2].double() * scale
        return scale, shift if values[1] is None else shift + values[1].double()

    def _read_constant(self, node: fx.Node) -> tuple[Tensor | None, Tensor | None] | None:
        """Scale and shift of a multiplication or an addition; None if the other side is not a constant for each channel."""
        if node.target not in (*ADD, *MULTIPLY):
            return None
        value, channels = self._constants.value(self._other(node)), self._value.shape[1]
        if value is None or value.ndim > self._value.ndim:
            return None
        if value.numel() == 1:
            value = value.reshape(1).expand(channels)
        elif not (value.ndim >= 3 and value.shape[-3] == value.numel() == channels):
            return None
        value = value.flatten().double()
        return (value, None) if node.target in MULTIPLY else (None, value)

    def _is_residual(self, other: Any) -> bool:
        """Whether it is of the same type and shape as the result."""
        value = other.meta.get("val") if isinstance(other, fx.Node) else None
        return (
            isinstance(value, Tensor)
            and value.dtype == self._value.dtype
            and value.ndim == self._value.ndim
            and all(
                statically_known_true(theirs == ours)
                for theirs, ours in zip(value.shape, self._value.shape, strict=True)
            )
        )

    def _compute_sizes(self) -> None:
        """Computes sizes that are read from the removed nodes from the size of the convolution's input instead."""
        convolution = self._nodes[0]
        x, (_, stride, padding, dilation, _) = convolution.args[0], _arguments(convolution)
        sides = self._value_of_weight().shape[2:]
        for size in [user for node in self._nodes for user in node.users if user.target == SIZE]:
            axis: Any = size.args[1]  # 0, 2 or 3: the number of channels is known
            with size.graph.inserting_before(convolution):
                new = size.graph.call_function(SIZE, (x, axis))
                if axis > 1:
                    beyond = 2 * padding[axis - 2] - dilation[axis - 2] * (sides[axis - 2] - 1) - 1
                    new = size.graph.call_function(operator.add, (new, beyond))
                    new = size.graph.call_function(operator.floordiv, (new, stride[axis - 2]))
                    new = size.graph.call_function(operator.add, (new, 1))
            size.replace_all_uses_with(new)
            size.graph.erase_node(size)

    def _value_of_weight(self) -> Tensor:
        weight = self._constants.value(self._nodes[0].args[1])
        assert weight is not None
        return weight

    def _folded(self) -> tuple[fx.Node, fx.Node | None]:
        """New nodes for weight and bias, with scale and shift folded in."""
        convolution, graph = self._nodes[0], self._nodes[-1].graph
        weight = self._value_of_weight()
        folded = (
            weight.double() if self._scale is None else weight.double() * self._scale[:, None, None, None]
        )
        weight_node = graph.get_attr(
            self._constants.add(f"{convolution.name}_weight", folded.to(weight.dtype))
        )
        if self._shift is None:
            return weight_node, None
        return weight_node, graph.get_attr(
            self._constants.add(f"{convolution.name}_bias", self._shift.to(weight.dtype))
        )


def _layer_of(convolution: fx.Node) -> str:
    """The name of the module that has the weights; empty if they are computed."""
    weight = convolution.args[1]
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return str(weight.target).removesuffix(".weight")
    return ""


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
