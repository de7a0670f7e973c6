"""Refuses detectors that answer by code of their own where an export follows torchvision's.

Backbone, RPN head, box head, predictor and ``decode_single`` are exported through their own code, whatever it is. The
rest runs in rcnn_backend, which has torchvision's semantics and the detector's settings: a method or a hook of the
user's own would be left out without a word.
"""

import operator
import sys
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import (
    FCOS,
    FasterRCNN,
    KeypointRCNN,
    MaskRCNN,
    RetinaNet,
)
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from rcnn_export.errors import ExportError

# The parts of a detector that rcnn_backend stands in for, and the methods that answer there. Methods that only training
# calls may be anything.
FOLLOWED: dict[str, tuple[type, tuple[str, ...]]] = {
    "transform": (
        GeneralizedRCNNTransform,
        ("forward", "normalize", "resize", "batch_images", "max_by_axis", "postprocess"),
    ),
    "rpn.anchor_generator": (AnchorGenerator, ("forward", "grid_anchors")),
    "rpn.box_coder": (BoxCoder, ("decode",)),
    "rpn": (RegionProposalNetwork, ("forward", "filter_proposals", "_get_top_n_idx")),
    "roi_heads.box_roi_pool": (MultiScaleRoIAlign, ("forward",)),
    "roi_heads.box_coder": (BoxCoder, ("decode",)),
    "roi_heads": (RoIHeads, ("forward", "postprocess_detections", "has_mask", "has_keypoint")),
    "": (FasterRCNN, ("forward", "eager_outputs")),
}
HEADS: dict[str, type[FasterRCNN]] = {"mask": MaskRCNN, "keypoint": KeypointRCNN}
ONE_STAGE = {"retinanet_": RetinaNet, "fcos_": FCOS, "ssd": SSD}


def check_builder_name(model: str, heads: Collection[str] = ()) -> None:
    """Refuses a torchvision builder of another kind of detector.

    Args:
        heads: of ``HEADS``, which the detector may have beside its box head.

    Raises:
        ExportError: it builds a Mask or Keypoint R-CNN of a head that is not in ``heads``, or a one-stage detector.
    """
    refused = {f"{head}rcnn_": kind for head, kind in HEADS.items() if head not in heads}
    for prefix, kind in (refused | ONE_STAGE).items():
        if model.startswith(prefix):
            raise ExportError(f"{model} is a {_describe(kind)}")


def check_is_faster_rcnn(detector: object, model: str, heads: Collection[str] = ()) -> FasterRCNN:
    """What the function ``model`` returned, if it is a FasterRCNN with no other heads than ``heads``.

    Raises:
        ExportError: it is something else, or holds the FasterRCNN in an attribute.
    """
    refused = [kind for head, kind in HEADS.items() if head not in heads]
    kind = next((kind for kind in (*refused, *ONE_STAGE.values()) if isinstance(detector, kind)), None)
    if kind is not None:
        raise ExportError(f"{model} returned a {_describe(kind)}")
    if isinstance(detector, FasterRCNN):
        return detector
    given = f"{model} returned {'a class, ' if isinstance(detector, type) else ''}{_name(detector)}"
    if isinstance(detector, nn.Module):
        held = next((name for name, part in detector.named_modules() if isinstance(part, FasterRCNN)), None)
        if held is not None:
            raise ExportError(f"{given}, whose {held} is a FasterRCNN: return that")
    raise ExportError(f"{given}, expected torchvision.models.detection.FasterRCNN")


def check_followed(model: FasterRCNN, heads: Collection[str] = ()) -> None:
    """Refuses a detector in which torchvision's code is replaced where an export follows it.

    Raises:
        ExportError: a part has another class, a method or a hook of the user's own, or there is a mask or a keypoint
            head that is not in ``heads``.
    """
    for path, (kind, methods) in FOLLOWED.items():
        part = operator.attrgetter(path)(model) if path else model
        name = path or "the detector"
        if not isinstance(part, kind):
            raise ExportError(f"{name} is a {_name(part)}, expected torchvision's {kind.__name__}")
        for method in methods:
            if not _is_torchvisions(part, method, kind):
                raise ExportError(
                    f"{_name(part)}.{method} of {name} is not torchvision's {kind.__name__}.{method}: an export runs "
                    f"torchvision's, and would answer otherwise. Use torchvision's {method} and do the rest with the "
                    "pictures before they are sent or with the boxes that come back"
                )
        if isinstance(part, nn.Module) and (part._forward_hooks or part._forward_pre_hooks):
            raise ExportError(
                f"{name} ({_name(part)}) has a forward hook, which would not run in an export: remove it first"
            )
    for name, part in model.named_modules():
        kept = "in FP32" if ".quantized" in type(part).__module__ else "as Python modules"
        if kept == "in FP32" or isinstance(part, torch.jit.ScriptModule):
            raise ExportError(f"{name} is a {_name(part)}, which cannot be traced: build the detector {kept}")
    for head in HEADS:
        if head not in heads and getattr(model.roi_heads, f"has_{head}")():
            raise ExportError(
                f"the detector has a {head} head: faster_rcnn exports boxes only, and its {head}s would be lost. "
                f"Set roi_heads.{head}_predictor to None for the boxes alone"
            )


def _is_torchvisions(part: Any, method: str, kind: type) -> bool:
    """Whether ``part.method`` is the code in torchvision's file, not that of a subclass or a patch."""
    function = getattr(part, method)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    home = next(base for base in kind.__mro__ if method in vars(base))
    return code is not None and (code.co_filename, code.co_name) == (
        sys.modules[home.__module__].__file__,
        method,
    )


def _describe(kind: type) -> str:
    if kind in ONE_STAGE.values():
        return (
            f"{kind.__name__}, a one-stage detector: there are no proposals to cut it at. Give a FasterRCNN"
        )
    return (
        f"{kind.__name__}: faster_rcnn exports boxes only, and what it finds beyond them would be lost. "
        "Give a FasterRCNN"
    )


def _name(part: object) -> str:
    kind = part if isinstance(part, type) else type(part)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
