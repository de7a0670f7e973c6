"""Says whose weights they are, by the names of the tensors, where they are no torchvision Faster R-CNN's."""

import re
from collections.abc import Iterable

# The first that matches a name; those of a whole detector before those of the backbones inside.
_KINDS = (
    (r"(^|\.)roi_heads\.mask_", "a Mask R-CNN's weights (roi_heads.mask_...)"),
    (r"(^|\.)roi_heads\.keypoint_", "a Keypoint R-CNN's weights (roi_heads.keypoint_...)"),
    (
        r"(^|\.)(proposal_generator\.|backbone\.bottom_up\.)",
        "Detectron2's weights, whose names are not torchvision's",
    ),
    (
        r"(^|\.)roi_heads\.box\.(feature_extractor|predictor)\.",
        "maskrcnn-benchmark's weights, whose names are not torchvision's",
    ),
    (
        r"(^|\.)(roi_head|bbox_head|rpn_head|query_head)\.|^neck\.",
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


def describe_names(names: Iterable[str]) -> str:
    """Whose weights have these names, as a phrase after "holds"; the first few names where it is not known."""
    names = list(names)
    if known := known_kind(names):
        return known
    first = ", ".join(names[:3])
    return f"tensors under other names than torchvision's (the first: {first})"


def known_kind(names: Iterable[str]) -> str | None:
    """Whose weights have these names, if it is known."""
    names = list(names)
    for pattern, kind in _KINDS:
        if any(re.search(pattern, name) for name in names):
            return kind
    return None
