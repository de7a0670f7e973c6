"""Seeded random weights with which a detector finds objects, to try an export without trained weights."""

import copy

import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.transforms.functional import to_tensor

from rcnn_export.photos import load_photo

# The standard deviation that each predictor's outputs are given on the calibration picture. It is
# larger on sharper pictures, so these values leave room below saturation: no score ties at 1.0, and no
# box delta near its clamp, which would make boxes thousands of pixels wide.
OBJECTNESS_STD = 1.0
RPN_DELTAS_STD = 0.15
CLASS_LOGITS_STD = 1.5
CLASS_DELTAS_STD = 0.3

# The mean of batch normalisation's outputs, in standard deviations, so that the ReLU after it passes
# most of them. Fifty consecutive random layers that each cut off half of their outputs amplify FP32's
# rounding to 3e-5 of the features; trained layers do not, and neither do these (2 to 4e-6).
NORM_BIAS = 2.0

TILE_WIDTH, TILE_HEIGHT = 320, 240
# Four photos, and the width of the crop that fills a tile: from sharp to smooth.
TILES = (("china.jpg", 320), ("flower.jpg", 320), ("coffee", 160), ("astronaut", 80))


@torch.no_grad()
def calibrate(model: FasterRCNN) -> None:
    """Scales random weights in place, so that there are proposals and detections with different scores.

    An untrained detector gives everything the same score, so the later steps would have nothing to do.
    Batch normalisation takes its statistics from one picture made of real photos. Each predictor is
    scaled so that its outputs on this picture vary like those of a trained detector. This runs in one
    thread, so that the weights are the same to the bit for any number of cores (another kind of CPU
    may round differently).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _calibrate(model)
    finally:
        torch.set_num_threads(threads)


def _calibrate(model: FasterRCNN) -> None:
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the running statistics become this picture's
        norm.bias.fill_(NORM_BIAS)
        norm.train()
    images, _ = model.transform([_calibration_picture()])
    features = model.backbone(images.tensors)
    if isinstance(features, torch.Tensor):
        features = {"0": features}
    objectness, deltas = model.rpn.head(list(features.values()))
    if isinstance(model.rpn.head, RPNHead):  # a user's own head keeps its weights
        _spread(model.rpn.head.cls_logits, _channels_last(objectness), OBJECTNESS_STD)
        _spread(model.rpn.head.bbox_pred, _channels_last(deltas), RPN_DELTAS_STD)
    proposals, _ = model.rpn(images, features)
    heads = model.roi_heads
    # A copy, because a pooler keeps the scales that it infers from its first picture.
    pooler = copy.deepcopy(heads.box_roi_pool)
    roi_features = pooler(features, proposals, images.image_sizes)
    class_logits, class_deltas = heads.box_predictor(heads.box_head(roi_features))
    if isinstance(heads.box_predictor, FastRCNNPredictor):
        _spread(heads.box_predictor.cls_score, class_logits, CLASS_LOGITS_STD)
        _spread(heads.box_predictor.bbox_pred, class_deltas, CLASS_DELTAS_STD)
    model.eval()


def _calibration_picture() -> torch.Tensor:
    """Two rows of two tiles, float32 RGB in 0..1, [3, 480, 640]."""
    tiles = []
    for name, width in TILES:
        photo, height = load_photo(name), width * TILE_HEIGHT // TILE_WIDTH
        left, top = (photo.width - width) // 2, (photo.height - height) // 2
        crop = (left, top, left + width, top + height)
        tiles.append(to_tensor(photo.resize((TILE_WIDTH, TILE_HEIGHT), Image.Resampling.BICUBIC, box=crop)))
    return torch.cat([torch.cat(tiles[:2], dim=2), torch.cat(tiles[2:], dim=2)], dim=1)


def _channels_last(levels: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([level.movedim(1, -1).flatten(0, -2) for level in levels])  # [positions, C]


def _spread(layer: torch.nn.Conv2d | torch.nn.Linear, outputs: torch.Tensor, std: float) -> None:
    """Rescales a linear layer so that each of its ``outputs`` [samples, C] has mean 0 and ``std``."""
    scale = std / outputs.std(dim=0).mean().clamp(min=1e-6)
    assert layer.bias is not None
    layer.weight.mul_(scale)
    layer.bias.sub_(outputs.mean(dim=0)).mul_(scale)
