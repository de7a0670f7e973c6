"""Which pooling, upsampling and box selection is replaced by operators with kernels, and that they compute the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rcnn_export.detector.load import Detector
from rcnn_export.detector.split import RpnModule
from rcnn_export.engines.cudnn_export import export_fused
from rcnn_export.engines.fuse_kernels import FusedRpn, use_feature_map_kernels, with_best_boxes
from rcnn_export.engines.stages import engine_stage
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder

rcnn = torch.ops.rcnn


class Network(nn.Module):
    """Applies ``compute`` to its input."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


def use_kernels(compute: Callable[[Tensor], Tensor], example: Tensor) -> tuple[nn.Module, list[Any]]:
    """The traced network after the replacement, and the calls of our operators."""
    dims = {0: Dim("batch", min=1, max=8)} | dict.fromkeys(range(2, example.ndim), Dim.DYNAMIC)
    traced = torch.export.export(Network(compute), (example,), dynamic_shapes=(dims,)).module(
        check_guards=False
    )
    use_feature_map_kernels(traced.graph, with_additions=True)
    traced.recompile()
    return traced, [node.target for node in traced.graph.nodes if str(node.target).startswith("rcnn")]


@pytest.mark.parametrize(
    ("compute", "target"),
    [
        (lambda x: functional.max_pool2d(x, 3, 2, 1), rcnn.max_pool.default),
        (lambda x: functional.max_pool2d(x, 2), rcnn.max_pool.default),
        (lambda x: functional.max_pool2d(x, 1, 2, 0), rcnn.max_pool.default),
        (lambda x: functional.max_pool2d(x, (3, 2), (1, 2), (1, 0)), rcnn.max_pool.default),
        (
            lambda x: functional.interpolate(x, size=(x.shape[2] * 2 - 1, x.shape[3] * 2)),
            rcnn.upsample.default,
        ),
        (lambda x: functional.interpolate(x, size=(5, 4), mode="nearest"), rcnn.upsample.default),
        (lambda x: functional.max_pool2d(x, 3, dilation=2), None),
        (lambda x: functional.max_pool2d(x, 2, ceil_mode=True), None),
        (lambda x: functional.interpolate(x, scale_factor=2.0), None),
        (lambda x: functional.interpolate(x, size=(5, 4), mode="nearest-exact"), None),
        (lambda x: functional.interpolate(x, size=(5, 4), mode="bilinear"), None),
        (lambda x: functional.avg_pool2d(x, 2), None),
        (lambda x: functional.max_pool2d(x.double(), 2), None),
        (lambda x: functional.max_pool2d(x.flatten(0, 1), 2), None),
    ],
)
def test_what_is_replaced(compute: Callable[[Tensor], Tensor], target: Any) -> None:
    module, targets = use_kernels(compute, torch.rand(2, 4, 10, 12))
    assert targets == ([] if target is None else [target])
    for shape in ((2, 4, 10, 12), (1, 4, 9, 7), (3, 4, 16, 5)):
        x = torch.rand(shape)
        torch.testing.assert_close(module(x), compute(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("compute", "is_one"),
    [
        (lambda x, y: y + functional.interpolate(x, size=y.shape[-2:]), True),
        (lambda x, y: functional.interpolate(x, size=y.shape[-2:]) + y, True),
        (lambda x, y: torch.add(y, functional.interpolate(x, size=y.shape[-2:]), alpha=2), False),
        (lambda x, y: functional.interpolate(x, size=y.shape[-2:]) + y[:, :1], False),
        (lambda x, y: functional.interpolate(x, size=y.shape[-2:]) + y.double(), False),
        (lambda x, y: functional.interpolate(x, size=y.shape[-2:]) + 1.5, False),
        (lambda x, y: (up := functional.interpolate(x, size=y.shape[-2:])) + up, False),
        (lambda x, y: (up := functional.interpolate(x, size=y.shape[-2:])) * (up + y), False),
        (lambda x, y: functional.interpolate(x, size=y.shape[-2:]) * y, False),
    ],
)
def test_an_addition_after_an_upsampling_is_part_of_it(
    compute: Callable[[Tensor, Tensor], Tensor], is_one: bool
) -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return compute(x, y)

    dims = {0: Dim("batch"), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    maps = torch.rand(2, 4, 10, 12), torch.rand(2, 4, 20, 24)
    traced = torch.export.export(Network(), maps, dynamic_shapes=(dims, dims)).module(check_guards=False)
    use_feature_map_kernels(traced.graph, with_additions=True)
    traced.recompile()
    (node,) = (node for node in traced.graph.nodes if node.target == rcnn.upsample.default)
    assert (len(node.args) == 4) == is_one
    for shape in ((2, 4, 20, 24), (3, 4, 9, 13)):
        y = torch.rand(shape)
        x = torch.rand(shape[0], 4, 7, 5)
        torch.testing.assert_close(traced(x, y), compute(x, y), rtol=0, atol=0)


def test_the_additions_of_the_fpn_are_part_of_the_upsampling(digits: Detector) -> None:
    program, fusions = export_fused(engine_stage(digits.model, "rpn"))
    nodes = program.graph.nodes
    targets = [node.target for node in nodes if node.op == "call_function"]
    upsampled = [node for node in nodes if node.target == rcnn.upsample.default]
    assert len(upsampled) == 3
    assert all(node.args[3].target == rcnn.convolution.default for node in upsampled)
    assert targets.count(rcnn.best_boxes.default) == 1
    assert fusions.left == {}
    names = {str(target).split(".")[1] for target in targets if isinstance(target, torch._ops.OpOverload)}
    assert not {"max_pool2d", "upsample_nearest2d", "topk", "sort", "sigmoid", "add"} & names


class OwnDecoding(BoxCoder):
    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        return super().decode_single(rel_codes, boxes) + 1


def test_a_users_own_decoding_is_not_replaced(digits: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    rpn = RpnModule(digits.model)
    assert isinstance(with_best_boxes(rpn), FusedRpn)
    other = nn.Identity()
    assert with_best_boxes(other) is other
    monkeypatch.setattr(rpn, "box_coder", OwnDecoding((1, 1, 1, 1)))
    assert with_best_boxes(rpn) is rpn
    coder = BoxCoder((1, 1, 1, 1))
    monkeypatch.setattr(coder, "decode_single", lambda rel_codes, boxes: boxes, raising=False)
    monkeypatch.setattr(rpn, "box_coder", coder)
    assert with_best_boxes(rpn) is rpn


def test_a_fused_rpn_answers_the_same(digits: Detector) -> None:
    rpn = RpnModule(digits.model).eval()
    rpn.box_coder = BoxCoder((10, 10, 5, 5))
    fused = with_best_boxes(rpn)
    assert dict(fused.named_parameters()).keys() == dict(rpn.named_parameters()).keys()
    pictures = torch.rand(2, 3, 96, 160)
    with torch.no_grad():
        for ours, theirs in zip(fused(pictures), rpn(pictures), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
