"""Names the origin of weights that are not a torchvision Faster R-CNN's, by the names of their tensors."""

import re
from collections.abc import Iterable

# These have the parts of a torchvision R-CNN: a backbone, an RPN and RoI heads.
_RCNN_KINDS = (
    (r"^roi_heads\.mask_", "a Mask R-CNN's weights (roi_heads.mask_...)"),
    (r"^roi_heads\.keypoint_", "a Keypoint R-CNN's weights (roi_heads.keypoint_...)"),
    (
        r"^roi_heads\.box\.(feature_extractor|predictor)\.",
        "maskrcnn-benchmark's weights, whose names are not torchvision's",
    ),
)

# These do not. Whole detectors come before the backbones inside them.
_OTHER_KINDS = (
    (
        r"(^|\.)(proposal_generator|backbone\.bottom_up)\.",
        "Detectron2's weights, whose names are not torchvision's",
    ),
    (
        r"(^|\.)(roi_head|bbox_head|rpn_head|query_head|neck)\.",
        "MMDetection's weights, whose names are not torchvision's",
    ),
    (r"(^|\.)(class_embed|bbox_embed|class_labels_classifier)\b", "a DETR's weights"),
    (
        r"(^|\.)head\.(classification_head|regression_head)\.",
        "the weights of torchvision's RetinaNet, FCOS or SSD",
    ),
    (r"^(model\.)*\d+\.(conv|bn|m|cv\d)\b", "a YOLO's weights, as Ultralytics saves them"),
    (
        r"^(module\.|model\.)*(blocks\.\d|stages\.\d|patch_embed\.|cls_token|conv_stem\.)",
        "weights of a timm model, not of a detector",
    ),
    (
        r"^(module\.|model\.|backbone\.|body\.)*(conv1\.|layer1\.|features\.\d)",
        "weights of a backbone or a classifier alone, not of a detector",
    ),
)


def rcnn_kind(names: Iterable[str]) -> str | None:
    """The origin of an R-CNN's weights with these names; None for torchvision's Faster R-CNN."""
    return _first_match(_RCNN_KINDS, list(names))


def describe_names(names: Iterable[str]) -> str:
    """The origin of weights with these names, which are not an R-CNN's; the first few names if it is unknown."""
    names = list(names)
    first = ", ".join(names[:3])
    return (
        _first_match(_OTHER_KINDS, names)
        or f"tensors under other names than torchvision's (the first: {first})"
    )


def _first_match(kinds: Iterable[tuple[str, str]], names: list[str]) -> str | None:
    return next((kind for pattern, kind in kinds if any(re.search(pattern, name) for name in names)), None)
