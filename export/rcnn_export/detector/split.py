"""Cuts a torchvision Faster, Mask or Keypoint R-CNN at the module boundaries where shapes depend on the data.

    RpnModule             input -> rpn_boxes, feature_0, feature_1, ..., rpn_samples
    HeaderModule          roialigned_feature, proposals -> class_scores, class_boxes, header_samples
    MaskHeaderModule      mask_features, labels -> mask_probabilities, mask_header_samples
    KeypointHeaderModule  keypoint_features -> heatmaps, keypoint_header_samples

Shapes: B images, C channels, N anchors kept per image, R RoIs per image, K foreground
classes, L pyramid levels that RoIs are pooled from, D detections per image (padded), M of
them with features, P keypoints. Boxes are (x1, y1, x2, y2) in pixels of the resized image. The steps
between the modules (NMS, RoIAlign) run in rcnn_backend. It uses the ``*_samples`` to check that no
tensor was lost on the way to or from an engine.
"""

from collections.abc import Callable
from typing import Any

import torch
from rcnn_backend.contract.samples import FIRST
from rcnn_backend.engines.best_boxes import choose_boxes
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN

from rcnn_export.detector.shapes import cell_anchors, pooled_levels


class Cut(nn.Module):
    """A part of a detector that becomes an engine. ``NETWORKS``: its parts that may be FP16; the rest of forward is FP32."""

    NETWORKS: tuple[str, ...]


class RpnModule(Cut):
    """Backbone, RPN head, the best anchors of each level and their decoded boxes."""

    NETWORKS = ("backbone", "head")

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.head = model.rpn.head
        self.box_coder = model.rpn.box_coder
        self.pre_nms_top_n = model.rpn.pre_nms_top_n()
        self.pooled_levels = pooled_levels(model)
        self.cell_anchors = nn.ParameterList(
            nn.Parameter(anchors, requires_grad=False) for anchors in cell_anchors(model)
        )

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """``input`` [B, 3, H, W], normalised and padded -> rpn_boxes, feature_0, ..., rpn_samples

        ``rpn_boxes`` FP32 [B, N, 6]: objectness (probability), x1, y1, x2, y2 before
        clipping, level. N = sum over levels of min(pre_nms_top_n, anchors of the level);
        each level's rows are sorted by objectness, highest first.
        ``rpn_samples`` FP32 [B, S]: samples of input, rpn_boxes and each feature.
        Follows torchvision's RegionProposalNetwork up to filter_proposals' top-k.
        """
        features = self.backbone(input)
        if isinstance(features, Tensor):
            features = {"0": features}
        objectness, deltas = self.head(list(features.values()))
        rpn_boxes = self.best_boxes(objectness, deltas, input)
        pooled = [features[name] for name in self.pooled_levels]
        return rpn_boxes, *pooled, take_samples(input, rpn_boxes, *pooled)

    def best_boxes(self, objectness: list[Tensor], deltas: list[Tensor], input: Tensor) -> Tensor:
        """``rpn_boxes`` from the head's outputs for each level: [B, A, h, w] and [B, 4A, h, w]."""
        height, width = input.shape[-2:]
        anchors, decode = list(self.cell_anchors), self.box_coder.decode_single
        return choose_boxes(objectness, deltas, anchors, height, width, self.pre_nms_top_n, decode)


class HeaderModule(Cut):
    """Box head and predictor, softmax and per-class box decoding."""

    NETWORKS = ("box_head", "box_predictor")

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.box_head = model.roi_heads.box_head
        self.box_predictor = model.roi_heads.box_predictor
        self.box_coder = model.roi_heads.box_coder

    def forward(self, roialigned_feature: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``roialigned_feature`` [B, R, C, 7, 7], ``proposals`` FP32 [B, R, 4] -> class_scores, ...

        ``class_scores`` FP32 [B, R, K]: softmax over all classes, without the background column.
        ``class_boxes`` FP32 [B, R, K, 4]: decoded for each class, not clipped.
        ``header_samples`` FP32 [B, S]: samples of both inputs and both outputs.
        Follows torchvision's RoIHeads up to postprocess_detections' clipping.
        """
        batch, rois = proposals.shape[:2]
        logits, regression = self.box_predictor(self.box_head(roialigned_feature.flatten(0, 1)))
        scores = torch.softmax(logits.float(), dim=-1)
        boxes = self.box_coder.decode_single(regression.float(), proposals.reshape(-1, 4))
        boxes = boxes.reshape(batch, rois, -1, 4)  # [B, R, K + 1, 4]
        scores, boxes = scores.reshape(batch, rois, -1)[:, :, 1:], boxes[:, :, 1:]
        return scores, boxes, take_samples(roialigned_feature, proposals, scores, boxes)


class MaskHeaderModule(Cut):
    """Mask head and predictor, and the sigmoid of the channel of each detection's label."""

    NETWORKS = ("mask_head", "mask_predictor")

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.mask_head = model.roi_heads.mask_head
        self.mask_predictor = model.roi_heads.mask_predictor

    def forward(self, mask_features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """``mask_features`` [B, M, C, 14, 14], ``labels`` INT64 [B, D] -> mask_probabilities, mask_header_samples

        ``mask_probabilities`` FP16 [B, M, 28, 28]: for the first M labels, in the frame of each box.
        ``mask_header_samples`` FP32 [B, S]: samples of both inputs and of mask_probabilities.
        Follows torchvision's maskrcnn_inference.
        """
        batch, rois = mask_features.shape[:2]
        logits = self.mask_predictor(self.mask_head(mask_features.flatten(0, 1)))  # [B * M, K + 1, 28, 28]
        height, width = logits.shape[-2:]
        # A slice of labels would fix M to the example's value in the traced graph.
        first = labels.index_select(1, torch.arange(rois, device=labels.device))
        channels = first.reshape(-1, 1, 1, 1).expand(-1, 1, height, width)
        probabilities = torch.sigmoid(logits.gather(1, channels).float()).half()
        probabilities = probabilities.reshape(batch, rois, height, width)
        return probabilities, take_samples(mask_features, labels.float(), probabilities)


class KeypointHeaderModule(Cut):
    """Keypoint head and predictor."""

    NETWORKS = ("keypoint_head", "keypoint_predictor")

    def __init__(self, model: KeypointRCNN) -> None:
        super().__init__()
        self.keypoint_head = model.roi_heads.keypoint_head
        self.keypoint_predictor = model.roi_heads.keypoint_predictor

    def forward(self, keypoint_features: Tensor) -> tuple[Tensor, Tensor]:
        """``keypoint_features`` [B, M, C, 14, 14] -> heatmaps, keypoint_header_samples

        ``heatmaps`` [B, M, P, 56, 56], of the features' type: one for each keypoint, in the frame of each box.
        ``keypoint_header_samples`` FP32 [B, S]: samples of both.
        Follows torchvision's RoIHeads up to keypointrcnn_inference.
        """
        batch, rois = keypoint_features.shape[:2]
        heatmaps = self.keypoint_predictor(self.keypoint_head(keypoint_features.flatten(0, 1)))
        heatmaps = heatmaps.reshape(batch, rois, *heatmaps.shape[1:])
        return heatmaps, take_samples(keypoint_features, heatmaps)


MODULES: dict[str, Callable[[Any], Cut]] = {  # by the step's name in the chain
    "rpn": RpnModule,
    "header": HeaderModule,
    "mask_header": MaskHeaderModule,
    "keypoint_header": KeypointHeaderModule,
}


def take_samples(*tensors: Tensor) -> Tensor:
    """``rcnn_backend.steps.lost_tensors.take_samples`` as part of a graph: [B, ...] each -> FP32 [B, S]."""
    parts = []
    for tensor in tensors:
        first = tensor[(slice(None),) + (0,) * (tensor.ndim - 2)]
        parts.append(nn.functional.pad(first, (0, FIRST))[:, :FIRST])  # zeros where there are fewer
        middle = tensor if tensor.ndim == 2 else tensor.select(-2, tensor.shape[-2] // 2)
        parts.append(middle.abs().amax(dim=tuple(range(1, middle.ndim)))[:, None])
    return torch.cat([part.float() for part in parts], dim=1)
