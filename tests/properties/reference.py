"""torchvision's side of each comparison, on a CPU or a GPU: NumPy arrays in and out."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rcnn_backend.contract.parameters import DetectionParameters, PoolParameters, ProposalParameters
from rcnn_backend.devices import Device
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign, nms


def tensor(array: np.ndarray, device: Device) -> Tensor:
    return torch.from_numpy(array).to("cuda" if device.is_gpu else "cpu")


@contextlib.contextmanager
def exact_batched_nms() -> Iterator[None]:
    """Makes torchvision's NMS treat each group separately, as it does for many boxes, and keep the order of equal scores.

    For few boxes, torchvision first shifts each group away from the others, which rounds the coordinates. And its final
    sort guarantees no order among equal scores.
    """

    def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
        kept = torch.zeros_like(scores, dtype=torch.bool)
        for group in groups.unique():
            members = torch.where(groups == group)[0]
            kept[members[nms(boxes[members], scores[members], iou_threshold)]] = True
        indices = torch.where(kept)[0]
        return indices[scores[indices].sort(stable=True, descending=True).indices]

    with patch("torchvision.ops.boxes.batched_nms", batched_nms):
        yield


def top_anchors(logits: Tensor, level_sizes: list[int], pre_nms_top_n: int) -> Tensor:
    """The indices [B, k] of the best anchors of each level."""
    rpn = SimpleNamespace(pre_nms_top_n=lambda: pre_nms_top_n)
    return RegionProposalNetwork._get_top_n_idx(rpn, logits, level_sizes)


def filter_proposals(
    boxes: Tensor,
    logits: Tensor,
    top: Tensor,
    sizes_hw: list[tuple[int, int]],
    level_sizes: list[int],
    parameters: ProposalParameters,
) -> list[np.ndarray]:
    """The proposals of each image, from all anchors and the indices of the best ones."""
    rpn = SimpleNamespace(
        post_nms_top_n=lambda: parameters.padded_counts[-1],
        score_thresh=parameters.score_thresh,
        nms_thresh=parameters.nms_thresh,
        min_size=parameters.min_box_size,
        _get_top_n_idx=lambda *_: top,
    )
    with exact_batched_nms():
        found, _ = RegionProposalNetwork.filter_proposals(rpn, boxes, logits, sizes_hw, level_sizes)
    return [each.cpu().numpy() for each in found]


def postprocess_detections(
    scores: np.ndarray,
    boxes: np.ndarray,
    size_hw: tuple[int, int],
    parameters: DetectionParameters,
    device: Device,
) -> list[np.ndarray]:
    """Boxes, scores and labels from one image's probabilities [R, K], without the background, and boxes [R, K, 4]."""
    rois = len(scores)
    background = np.zeros((rois, 1), np.float32)
    heads = SimpleNamespace(
        box_coder=SimpleNamespace(decode=lambda regression, proposals: regression),
        score_thresh=parameters.score_thresh,
        nms_thresh=parameters.nms_thresh,
        detections_per_img=parameters.detections_per_img,
    )
    all_scores = np.concatenate([background, scores], axis=1)
    all_boxes = np.concatenate([np.zeros((rois, 1, 4), np.float32), boxes], axis=1)
    with exact_batched_nms(), patch("torch.nn.functional.softmax", lambda probabilities, dim: probabilities):
        found = RoIHeads.postprocess_detections(
            heads, tensor(all_scores, device), tensor(all_boxes, device), [torch.zeros(rois, 4)], [size_hw]
        )
    return [per_image[0].cpu().numpy() for per_image in found]


def roi_align(
    features: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    image_size_hw: tuple[int, int],
    parameters: PoolParameters,
    device: Device,
) -> np.ndarray:
    """The features of all images' boxes, computed in FP32: [n, C, *output_size_hw]."""
    names = [str(level) for level in range(len(features))]
    pooler = MultiScaleRoIAlign(
        names,
        parameters.output_size_hw,
        parameters.sampling_ratio,
        canonical_scale=parameters.canonical_scale,
        canonical_level=parameters.canonical_level,
    )
    pyramid: Any = OrderedDict(
        (name, tensor(feature, device).float()) for name, feature in zip(names, features, strict=True)
    )
    pooled = pooler(pyramid, [tensor(each, device) for each in boxes], [image_size_hw] * len(boxes))
    return pooled.cpu().numpy()
