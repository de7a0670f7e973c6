"""Which convolutions of a fused network become INT8, their types, and that the network computes nearly the same."""

from collections.abc import Callable, Sequence

import pytest
import torch
from rcnn_export.engines.fuse import fuse_convolutions
from rcnn_export.engines.quantize_fused import quantize_convolutions
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.nn import functional

rcnn = torch.ops.rcnn
Forward = Callable[["Network", Tensor], Tensor | tuple[Tensor, ...]]
RANGE = 6.0  # approximately that of every activation


class Network(nn.Module):
    """Convolutions 16 -> 16 with the names a to e; the output is ``then(self, x)``."""

    def __init__(self, then: Forward) -> None:
        super().__init__()
        self.then = then
        for name in "abcde":
            convolution = nn.Conv2d(16, 16, 3, padding=1)
            nn.init.normal_(convolution.weight, std=0.05)
            self.add_module(name, convolution)
        self.odd = nn.Conv2d(16, 24, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(16)
        for parameter in ("weight", "bias", "running_mean", "running_var"):
            getattr(self.norm, parameter).data.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.then(self, x)


def quantize(network: Network, layers: dict[str, Sequence[float]]) -> tuple[fx.GraphModule, int]:
    """The network traced, fused and quantised."""
    dims = {0: Dim("batch", min=1, max=8), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad():
        traced = torch.export.export(
            network.eval(), (torch.rand(2, 16, 10, 12),), dynamic_shapes=(dims,)
        ).module(check_guards=False)
    return quantize_convolutions(fuse_convolutions(traced)[0], layers)


def describe(module: fx.GraphModule) -> list[str]:
    """The convolutions and quantisations in graph order, with the types of input, residual and output."""
    lines = []
    types = {}
    for node in module.graph.nodes:
        if node.target == rcnn.quantize.default:
            types[node] = torch.int8
            lines.append("quantize")
        elif node.target == rcnn.convolution.default:
            lines.append("float")
        elif node.target == rcnn.convolution_int8.default:
            x, _, _, residual, *_ = node.args
            assert types[x] == torch.int8
            types[node] = node.args[-1]
            reads = "" if residual is None else f" + {name(types.get(residual, torch.float32))}"
            lines.append(f"int8{reads} -> {name(node.args[-1])}")
    return lines


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        (lambda net, x: net.a(x), ["quantize", "int8 -> float32"]),
        (
            lambda net, x: net.c(torch.relu(net.b(torch.relu(net.norm(net.a(x)))))),
            ["quantize", "int8 -> int8", "int8 -> int8", "int8 -> float32"],
        ),
        (  # a residual block between convolutions
            lambda net, x: net.d(torch.relu(net.c(net.b(y := torch.relu(net.a(x)))) + y)),
            ["quantize", "int8 -> int8", "int8 -> int8", "int8 + int8 -> int8", "int8 -> float32"],
        ),
        (  # the residual comes from another convolution and has no other reader
            lambda net, x: net.d(torch.relu(net.b(y := torch.relu(net.a(x))) + net.c(y))),
            ["quantize", "int8 -> int8", "int8 -> float32", "int8 + float32 -> int8", "int8 -> float32"],
        ),
        (  # one convolution adds the pooled map as its residual before another one reads it as its input
            lambda net, x: (net.b(net.a(x)) + (y := functional.max_pool2d(x, 1)), net.c(y)),
            ["quantize", "int8 -> int8", "quantize", "int8 + int8 -> float32", "int8 -> float32"],
        ),
        (  # the first result is an output of the network, and two convolutions read it, too
            lambda net, x: (y := torch.relu(net.a(x)), net.b(y), net.c(y)),
            ["quantize", "int8 -> float32", "quantize", "int8 -> float32", "int8 -> float32"],
        ),
        (
            lambda net, x: net.b(functional.max_pool2d(net.a(x), 2)),
            ["quantize", "int8 -> float32", "quantize", "int8 -> float32"],
        ),
        (lambda net, x: net.b(net.odd(x)[:, :16]), ["float", "quantize", "int8 -> float32"]),
        (lambda net, x: net.b(net.grouped(net.a(x))), ["quantize", "int8 -> float32", "float", "quantize"]),
    ],
)
def test_results_that_only_int8_layers_read_are_int8(then: Forward, expected: list[str]) -> None:
    torch.manual_seed(0)
    network = Network(then)
    layers = {each: [RANGE] for each in (*"abcde", "odd", "grouped")}
    module, count = quantize(network, layers)
    assert describe(module)[: len(expected)] == expected
    assert count == sum("int8 " in line for line in describe(module))
    for shape in ((1, 16, 9, 7), (3, 16, 12, 10)):
        x = 8 * (torch.rand(shape) - 0.5)
        with torch.no_grad():
            found, exact = module(x), network(x)
        for ours, theirs in zip(
            *((side if isinstance(side, tuple) else (side,)) for side in (found, exact)), strict=True
        ):
            assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_layers_without_a_range_for_each_run_stay() -> None:
    network = Network(lambda net, x: net.b(net.c(net.a(net.a(x)))))
    module, count = quantize(network, {"a": [RANGE], "b": [RANGE], "other": [RANGE]})
    assert (describe(module), count) == (["float", "float", "float", "quantize", "int8 -> float32"], 1)


def test_a_layer_that_runs_on_several_levels_has_a_range_for_each_and_one_set_of_weights() -> None:
    torch.manual_seed(0)
    network = Network(lambda net, x: (net.a(x), net.a(functional.max_pool2d(10 * x, 2))))
    module, count = quantize(network, {"a": [0.5, 5.0]})
    assert count == 2
    scales = [node.args[1] for node in module.graph.nodes if node.target == rcnn.quantize.default]
    assert scales == [0.5 / 127, 5.0 / 127]
    assert sum(parameter.dtype == torch.int8 for parameter in module.parameters()) == 1
    x = torch.rand(2, 16, 8, 8) - 0.5
    with torch.no_grad():
        for found, expected in zip(module(x), network(x), strict=True):
            assert (found - expected).abs().max() < 0.03 * expected.abs().max()


def test_results_equal_those_of_exact_integer_sums() -> None:
    """The result of one layer follows from the definition of its scales exactly, except for the order of roundings."""
    torch.manual_seed(0)
    network = Network(lambda net, x: torch.relu(net.a(x) + functional.max_pool2d(x, 1)))
    module, _ = quantize(network, {"a": [0.5]})
    x = torch.rand(2, 16, 8, 8) - 0.5
    weight = network.a.weight.detach()
    weight_scale = weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    whole_weight, whole_x = (weight / weight_scale).round(), (x / (0.5 / 127)).round()
    sums = functional.conv2d(whole_x.double(), whole_weight.double(), padding=1)
    expected = sums * (weight_scale.flatten() * 0.5 / 127)[:, None, None] + network.a.bias[:, None, None] + x
    with torch.no_grad():
        torch.testing.assert_close(module(x), torch.relu(expected).float(), rtol=1e-5, atol=1e-6)


def test_a_layer_of_zeros_and_an_activation_of_zeros_stay_zeros() -> None:
    network = Network(lambda net, x: net.b(net.a(x)))
    nn.init.zeros_(network.a.weight)
    nn.init.zeros_(network.a.bias)
    module, count = quantize(network, {"a": [RANGE], "b": [0.0]})
    with torch.no_grad():
        torch.testing.assert_close(module(x := torch.rand(1, 16, 4, 4)), network(x))
    assert count == 2


def test_the_float_weights_of_int8_layers_are_dropped() -> None:
    module, _ = quantize(Network(lambda net, x: net.b(net.a(x))), {"a": [RANGE]})
    kernels = [parameter.dtype for parameter in module.parameters() if parameter.ndim == 4]
    assert sorted(kernels, key=str) == [torch.float32, torch.int8]
