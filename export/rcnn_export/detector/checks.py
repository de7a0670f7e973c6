"""Refuses detectors that replace code of torchvision which an export does not take from the detector.

Backbone, RPN head, box, mask and keypoint heads, their predictors and ``decode_single`` are exported from their own code,
whatever it is. The rest runs in rcnn_backend, which has torchvision's semantics and the detector's settings. A user's own
method or hook there would be silently ignored.
"""

import operator
import sys
from typing import Any

import torch
from rcnn_backend.contract.chain import CHAINS
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

from rcnn_export.detector.families import KINDS, chain_of
from rcnn_export.errors import ExportError

# The parts of a detector that rcnn_backend replaces, and the methods that they use in inference. Methods that only
# training calls may be anything.
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
BUILDERS = {"fasterrcnn_": FasterRCNN, "maskrcnn_": MaskRCNN, "keypointrcnn_": KeypointRCNN}
ONE_STAGE = {"retinanet_": RetinaNet, "fcos_": FCOS, "ssd": SSD}


def check_builder_name(model: str, family: str | None = None) -> None:
    """Refuses a torchvision builder of another kind of detector.

    Args:
        family: the only family that is accepted; by default any.

    Raises:
        ExportError: it builds a detector of another family, or a one-stage detector.
    """
    for prefix, kind in (BUILDERS | ONE_STAGE).items():
        if model.startswith(prefix) and (reason := _refusal(kind, family)):
            raise ExportError(f"{model} is a {reason}")


def check_is_faster_rcnn(detector: object, model: str, family: str | None = None) -> FasterRCNN:
    """The return value of the function ``model``, if it is a FasterRCNN; MaskRCNN and KeypointRCNN are subclasses of it.

    Args:
        family: the only family that is accepted; by default any.

    Raises:
        ExportError: it is something else, or has the FasterRCNN in an attribute.
    """
    for kind in (*KINDS.values(), *ONE_STAGE.values()):
        if isinstance(detector, kind):
            if reason := _refusal(kind, family):
                raise ExportError(f"{model} returned a {reason}")
            break
    if isinstance(detector, FasterRCNN):
        return detector
    given = f"{model} returned {'a class, ' if isinstance(detector, type) else ''}{_name(detector)}"
    if isinstance(detector, nn.Module):
        held = next((name for name, part in detector.named_modules() if isinstance(part, FasterRCNN)), None)
        if held is not None:
            raise ExportError(f"{given}, whose {held} is a FasterRCNN: return that")
    expected = KINDS.get(family or "", FasterRCNN).__name__
    raise ExportError(f"{given}, expected torchvision.models.detection.{expected}")


def check_followed(model: FasterRCNN) -> None:
    """Refuses a detector that replaces code of torchvision where an export runs torchvision's.

    Raises:
        ExportError: a part has another class, or a method or hook of the user's own; or the detector has a head that
            its family does not have, or lacks one that its family has.
    """
    chain = chain_of(model)
    own_head, own_kind = chain.head, KINDS[chain.family]
    if own_head and not _has_head(model, own_head):
        raise ExportError(
            f"the detector is a {own_kind.__name__} without a {own_head} head: set {own_head}_roi_pool, "
            f"{own_head}_head and {own_head}_predictor of its roi_heads, or give a FasterRCNN for the boxes alone"
        )
    own_pool = {f"roi_heads.{own_head}_roi_pool": FOLLOWED["roi_heads.box_roi_pool"]} if own_head else {}
    for path, (kind, methods) in (own_pool | FOLLOWED).items():
        part = operator.attrgetter(path)(model) if path else model
        name = path or "the detector"
        if not isinstance(part, kind):
            raise ExportError(f"{name} is a {_name(part)}, expected torchvision's {kind.__name__}")
        for method in methods:
            if not _is_torchvisions(part, method, kind):
                raise ExportError(
                    f"{_name(part)}.{method} of {name} is not torchvision's {kind.__name__}.{method}: an export runs "
                    f"torchvision's, and would give other answers. Use torchvision's {method} and do the rest to the "
                    "pictures before they are sent or to the returned boxes"
                )
        if isinstance(part, nn.Module) and (part._forward_hooks or part._forward_pre_hooks):
            raise ExportError(
                f"{name} ({_name(part)}) has a forward hook, which would not run in an export: remove it first"
            )
    for name, part in model.named_modules():
        kept = "in FP32" if ".quantized" in type(part).__module__ else "as Python modules"
        if kept == "in FP32" or isinstance(part, torch.jit.ScriptModule):
            raise ExportError(f"{name} is a {_name(part)}, which cannot be traced: build the detector {kept}")
    for other in CHAINS.values():
        if other.head not in ("", own_head) and _has_head(model, other.head):
            found = _found(chain.family)
            raise ExportError(
                f"the detector has a {other.head} head: {chain.family} exports {found} only, and its {other.head}s "
                f"would be lost. Set roi_heads.{other.head}_predictor to None for the {found} alone"
            )


def _has_head(model: FasterRCNN, head: str) -> bool:
    parts = (f"{head}_roi_pool", f"{head}_head", f"{head}_predictor")
    return all(getattr(model.roi_heads, part, None) is not None for part in parts)


def _is_torchvisions(part: Any, method: str, kind: type) -> bool:
    """Whether ``part.method`` is the code in torchvision's file, not in a subclass or a patch."""
    function = getattr(part, method)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    home = next(base for base in kind.__mro__ if method in vars(base))
    return code is not None and (code.co_filename, code.co_name) == (
        sys.modules[home.__module__].__file__,
        method,
    )


def _refusal(kind: type, family: str | None) -> str:
    """Why a detector of that kind is not exported; empty if it is."""
    if kind in ONE_STAGE.values():
        return (
            f"{kind.__name__}, a one-stage detector, which has no proposals to cut it at. Give a FasterRCNN"
        )
    if family is None or kind is KINDS[family]:
        return ""
    own, wanted = next(name for name, each in KINDS.items() if each is kind), KINDS[family]
    reason = (
        f"{family} exports {_found(family)}, and it finds {_found(own)}"
        if CHAINS[family].head
        else f"{family} exports {_found(family)} only, and anything else that it finds would be lost"
    )
    return f"{kind.__name__}: {reason}. Give a {wanted.__name__}, or export it with `rcnn-export {own}`"


def _found(family: str) -> str:
    """What a detector of the family finds."""
    head = CHAINS[family].head
    return f"boxes and {head}s" if head else "boxes"


def _name(part: object) -> str:
    kind = part if isinstance(part, type) else type(part)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
