"""Puts the operators with our own kernels into a network: pooling, upsampling, and the selection of boxes.

They are ``rcnn_backend.engines.feature_maps`` and ``rcnn_backend.engines.best_boxes``. Operations that they do not
support stay as torch traced them.
"""

import operator
from typing import Any

import rcnn_backend.engines.feature_maps  # noqa: F401  defines the operators
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torchvision.models.detection._utils import BoxCoder

from rcnn_export.detector.split import RpnModule

aten, rcnn = torch.ops.aten, torch.ops.rcnn
MAX_POOL, UPSAMPLE = aten.max_pool2d.default, aten.upsample_nearest2d.vec
TYPES = (torch.float16, torch.float32)
Call = tuple[Any, tuple[Any, ...]]  # an operator, and its arguments after the feature map


class FusedRpn(RpnModule):
    """An RpnModule whose boxes one operator selects and decodes. It shares all parts with the given module."""

    def __init__(self, rpn: RpnModule) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(vars(rpn))

    def best_boxes(self, objectness: list[Tensor], deltas: list[Tensor], input: Tensor) -> Tensor:
        """As in RpnModule."""
        coder = self.box_coder
        boxes: Tensor = rcnn.best_boxes(
            list(objectness),
            list(deltas),
            list(self.cell_anchors),
            *input.shape[-2:],
            self.pre_nms_top_n,
            [float(weight) for weight in coder.weights],
            float(coder.bbox_xform_clip),
        )
        return boxes


def with_best_boxes(module: nn.Module) -> nn.Module:
    """The module, or a FusedRpn of it if it is an RpnModule that decodes boxes as torchvision does."""
    if not isinstance(module, RpnModule):
        return module
    coder = module.box_coder
    is_torchvisions = type(coder).decode_single is BoxCoder.decode_single and "decode_single" not in vars(
        coder
    )
    return FusedRpn(module) if is_torchvisions else module


def use_feature_map_kernels(graph: fx.Graph, with_additions: bool) -> None:
    """Replaces max pooling, and nearest upsampling to a given size.

    Args:
        with_additions: whether an upsampling includes an addition that follows it.
    """
    for node in list(graph.nodes):
        call = _read(node)
        if call is None:
            continue
        target, arguments = call
        addition = _addition_after(node) if with_additions and node.target == UPSAMPLE else None
        last = addition or node
        if addition:
            arguments = (*arguments, *(each for each in addition.args if each is not node))
        with graph.inserting_before(last):
            new = graph.call_function(target, (node.args[0], *arguments))
        new.meta = dict(last.meta)
        last.replace_all_uses_with(new)
        for each in dict.fromkeys((last, node)):
            graph.erase_node(each)


def _addition_after(node: fx.Node) -> fx.Node | None:
    """The only user of the node, if it adds a map of the same type and shape."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user.target != aten.add.Tensor or user.kwargs or user.args.count(node) != 1:
        return None
    left, right = (each.meta.get("val") if isinstance(each, fx.Node) else None for each in user.args)
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
        return None
    if left.dtype != right.dtype or left.ndim != right.ndim:
        return None
    is_same = all(map(statically_known_true, map(operator.eq, left.shape, right.shape)))
    return user if is_same else None


def _read(node: fx.Node) -> Call | None:
    """The call that replaces the node; None if the node stays."""
    if node.target not in (MAX_POOL, UPSAMPLE) or node.kwargs or not _is_feature_map(node.args[0]):
        return None
    return _read_pool(*node.args[1:]) if node.target == MAX_POOL else _read_upsampling(*node.args[1:])


def _is_feature_map(argument: Any) -> bool:
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    return isinstance(value, Tensor) and value.ndim == 4 and value.dtype in TYPES


def _read_pool(
    kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: Any = False
) -> Call | None:
    if ceil_mode or _pair(dilation) != [1, 1]:
        return None
    return rcnn.max_pool.default, (_pair(kernel), _pair(stride or kernel), _pair(padding))


def _read_upsampling(size_hw: Any, scales: Any = None) -> Call | None:
    if size_hw is None or scales is not None:
        return None
    return rcnn.upsample.default, tuple(size_hw)


def _pair(value: Any) -> list[int]:
    """Both sides of an argument that torch also takes as one number."""
    sides = [value] if isinstance(value, int) else list(value)
    return sides * 2 if len(sides) == 1 else sides
