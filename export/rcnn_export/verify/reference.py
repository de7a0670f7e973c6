"""The reference for a pipeline: torchvision's Faster, Mask or Keypoint R-CNN, run by stage, eager, in FP32, on the CPU.

Shapes: B images, C channels, N anchors kept per image, R proposals per image, K foreground
classes, P keypoints. Boxes are (x1, y1, x2, y2) in pixels of the resized image unless stated otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.transform import resize_keypoints

from rcnn_export.detector.families import chain_of
from rcnn_export.detector.shapes import pooled_levels

Float = npt.NDArray[np.float32]


@dataclass
class ImageDetections:
    """One image's final detections, best first; boxes in pixels of the image as sent."""

    boxes: Float  # [n, 4]
    scores: Float  # [n]
    labels: npt.NDArray[np.int64]  # [n], 1..K
    of_head: dict[str, Float] = field(default_factory=dict)  # the head's answers, such as masks [n, h, w]


@dataclass
class Trace:
    """The output of each stage for one batch, from torchvision or from an export, without padding."""

    input: Float  # [B, 3, H, W]
    image_sizes: Float  # [B, 4]: resized height and width, original height and width
    rpn_boxes: Float  # [B, N, 6]: objectness, x1, y1, x2, y2 before clipping, level
    features: list[Float]  # [B, C, h, w] of each level that RoIs are pooled from
    proposals: list[Float]  # of each image [R, 4]
    roialigned_feature: list[Float]  # of each image [R, C, 7, 7]
    class_scores: list[Float]  # of each image [R, K]
    class_boxes: list[Float]  # of each image [R, K, 4]
    detections: list[ImageDetections]
    detected_boxes: list[Float]  # of each image [n, 4], those of the detections in the resized image
    # For a family with a head on the detections, of each image:
    head_features: list[Float] = field(default_factory=list)  # [n, C, 14, 14]
    # [n, 28, 28], probabilities, or heatmaps [n, P, 56, 56]
    head_maps: list[Float] = field(default_factory=list)


@torch.no_grad()
def run_reference(model: FasterRCNN, images: Sequence[npt.NDArray[np.uint8]]) -> Trace:
    """Runs one batch of uint8 RGB images [h, w, 3] through ``model``'s own modules and methods.

    The calls are those of GeneralizedRCNN.forward, RegionProposalNetwork.forward and
    RoIHeads.forward, so that the last stage equals ``model(images)``.
    """
    pixels = [torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255 for image in images]
    batch, _ = model.transform(pixels)
    original_sizes = [image.shape[:2] for image in images]

    features = model.backbone(batch.tensors)
    if isinstance(features, torch.Tensor):
        features = {"0": features}

    objectness, deltas = model.rpn.head(list(features.values()))
    anchors = model.rpn.anchor_generator(batch, list(features.values()))
    anchors_per_level = [level[0].numel() for level in objectness]
    objectness, deltas = concat_box_prediction_layers(objectness, deltas)
    objectness = objectness.reshape(len(images), -1)  # [B, anchors]
    boxes = model.rpn.box_coder.decode(deltas, anchors).reshape(len(images), -1, 4)  # [B, anchors, 4]
    rpn_boxes = _rpn_boxes(model, objectness, boxes, anchors_per_level)

    proposals, _ = model.rpn.filter_proposals(boxes, objectness, batch.image_sizes, anchors_per_level)
    pooled = model.roi_heads.box_roi_pool(features, proposals, batch.image_sizes)
    logits, regression = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    class_boxes = model.roi_heads.box_coder.decode(regression, proposals)  # [rois, K + 1, 4]
    class_scores = torch.softmax(logits, dim=-1)

    found = model.roi_heads.postprocess_detections(logits, regression, proposals, batch.image_sizes)
    detected_boxes = found[0]
    head_features, head_maps = _head_branch(model, features, found, batch.image_sizes)
    detections = [
        {"boxes": boxes, "scores": scores, "labels": labels}
        for boxes, scores, labels in zip(*found, strict=True)
    ]
    if isinstance(model, KeypointRCNN):
        for image, maps, boxes in zip(detections, head_maps, detected_boxes, strict=True):
            image["keypoints"], image["keypoint_scores"] = heatmaps_to_keypoints(
                torch.from_numpy(maps), boxes
            )
    detections = model.transform.postprocess(detections, batch.image_sizes, original_sizes)

    counts = [len(boxes) for boxes in proposals]
    return Trace(
        input=batch.tensors.numpy(),
        image_sizes=np.array(
            [
                (*resized, *original)
                for resized, original in zip(batch.image_sizes, original_sizes, strict=True)
            ],
            np.float32,
        ),
        rpn_boxes=rpn_boxes.numpy(),
        features=[features[name].numpy() for name in pooled_levels(model)],
        proposals=[boxes.numpy() for boxes in proposals],
        roialigned_feature=[rows.numpy() for rows in pooled.split(counts)],
        class_scores=[rows.numpy() for rows in class_scores[:, 1:].split(counts)],
        class_boxes=[rows.numpy() for rows in class_boxes[:, 1:].split(counts)],
        detections=[
            ImageDetections(
                image.pop("boxes").numpy(),
                image.pop("scores").numpy(),
                image.pop("labels").numpy(),
                {name: answer.numpy() for name, answer in image.items()},
            )
            for image in detections
        ],
        detected_boxes=[boxes.numpy() for boxes in detected_boxes],
        head_features=head_features,
        head_maps=head_maps,
    )


@torch.no_grad()
def run_header(model: FasterRCNN, roialigned_feature: Float, proposals: Float) -> tuple[Float, Float]:
    """The output of ``model``'s header for RoIs: pooled features [R, C, h, w] and boxes [R, 4] -> ``class_scores``,
    ``class_boxes`` as in a ``Trace``.
    """
    logits, regression = model.roi_heads.box_predictor(
        model.roi_heads.box_head(torch.from_numpy(roialigned_feature))
    )
    boxes = model.roi_heads.box_coder.decode(regression, [torch.from_numpy(proposals)])  # [R, K + 1, 4]
    return torch.softmax(logits, dim=-1)[:, 1:].numpy(), boxes[:, 1:].numpy()


@torch.no_grad()
def run_head(model: FasterRCNN, head_features: Float, labels: npt.NDArray[np.int64]) -> Float:
    """The output of ``model``'s head for detections: features [n, C, h, w] and labels [n] -> ``head_maps`` of a Trace."""
    heads, head = model.roi_heads, chain_of(model).head
    made = getattr(heads, f"{head}_predictor")(
        getattr(heads, f"{head}_head")(torch.from_numpy(head_features))
    )
    if isinstance(model, MaskRCNN):
        made = torch.sigmoid(made)[torch.arange(len(labels)), torch.from_numpy(labels)]
    maps: Float = made.numpy()
    return maps


@torch.no_grad()
def run_keypoints(heatmaps: Float, detected_boxes: Float, image_size: Float) -> dict[str, Float]:
    """torchvision's keypoints for heatmaps [n, P, h, w] and boxes [n, 4]: ``keypoints`` [n, P, 3] in pixels of the image as
    sent and ``keypoint_scores`` [n, P].

    Args:
        image_size: resized height and width, original height and width.
    """
    keypoints, scores = heatmaps_to_keypoints(torch.from_numpy(heatmaps), torch.from_numpy(detected_boxes))
    resized_hw, original_hw = image_size[:2].tolist(), image_size[2:].tolist()
    return {
        "keypoints": resize_keypoints(keypoints, resized_hw, original_hw).numpy(),
        "keypoint_scores": scores.numpy(),
    }


def _head_branch(
    model: FasterRCNN,
    features: dict[str, torch.Tensor],
    found: tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]],
    sizes: list[tuple[int, int]],
) -> tuple[list[Float], list[Float]]:
    """``head_features`` and ``head_maps`` of a Trace, from boxes, scores and labels of each image."""
    if not (head := chain_of(model).head):
        return [], []
    boxes, _, labels = found
    pool = getattr(model.roi_heads, f"{head}_roi_pool")
    pooled = [rows.numpy() for rows in pool(features, boxes, sizes).split([len(each) for each in boxes])]
    return pooled, [run_head(model, rows, each.numpy()) for rows, each in zip(pooled, labels, strict=True)]


def _rpn_boxes(
    model: FasterRCNN, objectness: torch.Tensor, boxes: torch.Tensor, anchors_per_level: list[int]
) -> torch.Tensor:
    """The rows [B, N, 6] that remain after filter_proposals' top-k, in the layout of ``Trace.rpn_boxes``."""
    top = model.rpn._get_top_n_idx(objectness, anchors_per_level)  # [B, N]
    levels = torch.cat([torch.full((count,), float(level)) for level, count in enumerate(anchors_per_level)])
    scores = torch.sigmoid(objectness.gather(1, top))[:, :, None]
    boxes = boxes.gather(1, top[:, :, None].expand(-1, -1, 4))
    return torch.cat([scores, boxes, levels[top][:, :, None]], dim=2)
