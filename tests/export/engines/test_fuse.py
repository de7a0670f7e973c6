"""Which operators are fused into convolutions, and that the fused network computes the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rcnn_export.engines.fuse import Fusions, fuse_convolutions
from rcnn_export.engines.onnx_export import export_program
from rcnn_export.engines.stages import engine_stage
from torch import Tensor, fx, nn
from torch.export import Dim
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d

pytestmark = pytest.mark.xdist_group("export")
aten, rcnn = torch.ops.aten, torch.ops.rcnn


class Network(nn.Module):
    """A convolution 4 -> 4 and a batch normalisation; the output is ``then(self, x)``."""

    def __init__(
        self, then: Callable[["Network", Tensor], Tensor], norm: type = nn.BatchNorm2d, **kwargs: Any
    ):
        super().__init__()
        self.then = then
        self.conv = nn.Conv2d(4, 4, 3, **({"padding": 1} | kwargs))
        self.norm = norm(4)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(self.norm, name).data.uniform_(0.5, 1.5)
        self.table = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, x)


def fuse(network: nn.Module, *shape: int) -> tuple[fx.GraphModule, Fusions]:
    """The network, traced with dynamic batch, height and width, and then fused."""
    dims = {0: Dim("batch", min=1, max=8), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    example = (torch.rand(*(shape or (2, 4, 10, 12))),)
    with torch.no_grad():
        traced = torch.export.export(network.eval(), example, dynamic_shapes=(dims,))
    return fuse_convolutions(traced.module(check_guards=False))


def calls(module: fx.GraphModule) -> list[str]:
    """The operators in graph order, without their overload names and without arithmetic on sizes."""
    return [
        str(node.target).split(".")[1]
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and "sym_size" not in str(node.target)
    ]


def detect_parts(module: fx.GraphModule) -> tuple[bool, bool, bool]:
    """Whether the only fused convolution has a bias, a residual and a ReLU."""
    (node,) = (node for node in module.graph.nodes if node.target == rcnn.convolution.default)
    return node.args[2] is not None, node.args[3] is not None, node.args[-1]


def assert_same(network: nn.Module, fused: nn.Module, channels: int = 4) -> None:
    for batch, height, width in ((2, 10, 12), (1, 7, 5), (3, 16, 9)):
        x = torch.rand(batch, channels, height, width) - 0.5
        with torch.no_grad():
            torch.testing.assert_close(fused(x.clone()), network(x.clone()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("then", "left", "parts"),
    [
        (lambda net, x: net.conv(x), [], (True, False, False)),
        (lambda net, x: torch.relu(net.conv(x)), [], (True, False, True)),
        (lambda net, x: torch.relu_(net.norm(net.conv(x))), [], (True, False, True)),
        (lambda net, x: torch.relu(net.norm(net.conv(x)) + x), [], (True, True, True)),
        (lambda net, x: net.conv(x).add_(x).relu_(), [], (True, True, True)),
        (lambda net, x: x + net.norm(net.conv(x)), [], (True, True, False)),
        (lambda net, x: 2 * net.conv(x) * net.table + 1, [], (True, False, False)),
        (lambda net, x: nn.functional.hardswish(net.norm(net.conv(x))), ["hardswish"], (True, False, False)),
        # a normalisation after the residual or after ReLU does not belong to the convolution
        (lambda net, x: net.norm(net.conv(x) + x), ["batch_norm"], (True, True, False)),
        (lambda net, x: net.norm(torch.relu(net.conv(x))), ["batch_norm"], (True, False, True)),
        # the added tensor has another shape or another type than the convolution
        (lambda net, x: net.conv(x) + x[:, :1], ["slice", "add"], (True, False, False)),
        (lambda net, x: net.conv(x) + x.double(), ["_assert_tensor_metadata", "to", "add"], (True, False, False)),
        # the factors are for columns, not for channels
        (lambda net, x: net.conv(x[..., :4]) * net.table.flatten(), ["slice", "flatten", "mul"], (True, False, False)),
        # another operator uses the result of the convolution, too
        (lambda net, x: (y := net.conv(x)) * torch.relu(y), ["relu", "mul"], (True, False, False)),
        (lambda net, x: (y := net.conv(x)) + y, ["add"], (True, False, False)),
        # the input of the convolution, or the residual, is overwritten before it is added
        (lambda net, x: net.conv(z := x + 1) + z.relu_(), ["add", "relu_", "add"], (True, False, False)),
        (lambda net, x: (z := x + 1).add_(net.conv(z)) + z, ["add", "add_", "add"], (True, False, False)),
    ],
)  # fmt: skip
def test_what_is_fused(
    then: Callable[[Network, Tensor], Tensor], left: list[str], parts: tuple[bool, bool, bool]
) -> None:
    network = Network(then)
    module, fusions = fuse(network)
    found = calls(module)
    assert fusions == Fusions(1, {})
    assert sorted(found) == sorted([*left, "convolution"])
    assert detect_parts(module) == parts
    assert_same(network, module)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
@pytest.mark.parametrize(
    "geometry",
    [
        {"stride": 2},
        {"padding": (2, 0)},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"bias": False},
        {"groups": 2, "bias": False, "stride": (1, 2)},
    ],
)
def test_every_geometry_and_normalisation(norm: type, geometry: dict[str, Any]) -> None:
    network = Network(lambda net, x: torch.relu(net.norm(net.conv(x))), norm, **geometry)
    module, fusions = fuse(network)
    assert (fusions, calls(module)) == (Fusions(1, {}), ["convolution"])
    assert_same(network, module)


def test_constants_of_any_origin_go_into_the_weight() -> None:
    """The weight is standardised here, as in ResNetV2 and NFNet."""

    def then(net: Network, x: Tensor) -> Tensor:
        weight = (net.conv.weight - net.conv.weight.mean()) / net.conv.weight.std()
        return net.norm(nn.functional.conv2d(x, weight, padding=1))

    network = Network(then)
    module, fusions = fuse(network)
    assert (fusions, calls(module)) == (Fusions(1, {}), ["convolution"])
    assert_same(network, module)


def test_only_the_tensors_in_use_are_kept() -> None:
    module, _ = fuse(Network(lambda net, x: net.norm(net.conv(x))))
    assert [tuple(parameter.shape) for parameter in module.parameters()] in (
        [(4, 4, 3, 3), (4,)],
        [(4,), (4, 4, 3, 3)],
    )


def test_weights_used_twice_stay_apart() -> None:
    """The head of an RPN uses its weights several times: it runs on each level."""

    def then(net: Network, x: Tensor) -> Tensor:
        return net.norm(net.conv(x)) + torch.relu(net.conv(2 * x))

    network = Network(then)
    module, fusions = fuse(network)
    assert fusions == Fusions(2, {})
    assert_same(network, module)


def test_depthwise_convolutions_stay_in_torch_with_their_normalisation_folded() -> None:
    network = Network(lambda net, x: torch.relu(net.norm(net.conv(x))), groups=4)
    module, fusions = fuse(network)
    assert (fusions, calls(module)) == (Fusions(0, {"depthwise": 1}), ["conv2d", "relu"])
    assert_same(network, module)


def test_other_convolutions_are_left_and_named() -> None:
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 4, 2, 2)
            self.same = nn.Conv2d(4, 4, 3, padding="same")
            self.plain = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(torch.relu(self.same(self.up(x))))

    network = Others()
    module, fusions = fuse(network)
    assert str(fusions) == (
        "1 of 3 convolutions are fused with what follows them; PyTorch runs the others as they are "
        "(1 conv_transpose2d, 1 conv2d)"
    )
    assert_same(network, module)


def test_a_view_of_channels_in_another_order_copies() -> None:
    """A user's own head may flatten with ``view``, which fails for tensors in channels-last order."""
    network = Network(lambda net, x: net.conv(x).view(x.shape[0], -1))
    module, _ = fuse(network)
    assert_same(network, module)


def resnext50() -> nn.Module:
    backbone = resnet_fpn_backbone(backbone_name="resnext50_32x4d", weights=None)
    return FasterRCNN(backbone, num_classes=3)


def mask_head() -> nn.Module:
    return nn.Sequential(MaskRCNNHeads(256, (256,) * 4, 1), MaskRCNNPredictor(256, 256, 91))


RESNET = 53 + 8 + 3 * 5  # backbone, FPN, and the RPN's head on each of five levels


@pytest.mark.long
@pytest.mark.parametrize(
    ("build", "fused", "left"),
    [
        (lambda: fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None), RESNET, {}),
        # its RPN's head has two convolutions before the predictors
        (lambda: fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None), RESNET + 5, {}),
        (resnext50, RESNET, {}),
        (
            lambda: fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None),
            60,
            {"depthwise": 15},
        ),
    ],
    ids=["resnet50", "resnet50_v2", "resnext50", "mobilenet"],
)
def test_the_convolutions_of_torchvisions_models(
    build: Callable[[], Any], fused: int, left: dict[str, int]
) -> None:
    stage = engine_stage(build().eval(), "rpn")
    module, fusions = fuse_convolutions(export_program(stage).module(check_guards=False))
    assert fusions == Fusions(fused, left)
    assert not {"batch_norm", "_native_batch_norm_legit_no_training"} & set(calls(module))
    x = torch.rand(1, 3, 96, 160)
    with torch.inference_mode():
        for ours, theirs in zip(module(x)[1:], stage.module(x)[1:], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_deconvolution_of_a_mask_head_is_left() -> None:
    module, fusions = fuse(mask_head().eval(), 2, 256, 14, 14)
    assert fusions == Fusions(5, {"conv_transpose2d": 1})
    assert calls(module) == ["convolution"] * 4 + ["conv_transpose2d", "relu_", "convolution"]


def test_an_operator_that_reads_only_the_size_does_not_prevent_fusion() -> None:
    """In the FPN, the added tensor is upsampled to the size of the convolution's result."""

    def then(net: Network, x: Tensor) -> Tensor:
        lateral = net.norm(net.conv(x))
        coarse = nn.functional.max_pool2d(x, 3, 2, 1)
        return lateral + nn.functional.interpolate(coarse, size=lateral.shape[-2:], mode="nearest")

    for geometry in ({}, {"stride": 2}, {"stride": (1, 3), "padding": (2, 0), "dilation": (2, 1)}):
        network = Network(then, **geometry)
        module, fusions = fuse(network)
        assert fusions == Fusions(1, {})
        assert sorted(set(calls(module))) == ["convolution", "max_pool2d", "upsample_nearest2d"]
        assert_same(network, module)
