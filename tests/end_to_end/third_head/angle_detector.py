"""A detector of a made-up family: a third head finds an angle for each detection."""

import torch
from rcnn_export.detector.random_weights import calibrate
from rcnn_export.digits.detector import digits_detector
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import MultiScaleRoIAlign

CLASSES = 5


class AngleRCNN(FasterRCNN):
    """A FasterRCNN whose ``roi_heads`` also have ``angle_roi_pool``, ``angle_head`` and ``angle_predictor``."""


def angle_detector() -> AngleRCNN:
    """A small one with random weights."""
    plain = digits_detector()
    torch.manual_seed(0)
    model = AngleRCNN(
        plain.backbone,
        CLASSES,
        min_size=128,
        max_size=256,
        rpn_anchor_generator=plain.rpn.anchor_generator,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=50,
        box_detections_per_img=20,
        box_score_thresh=0.3,
    )
    heads, channels = model.roi_heads, plain.backbone.out_channels
    heads.angle_roi_pool = MultiScaleRoIAlign(heads.box_roi_pool.featmap_names, 6, 2)
    heads.angle_head = nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    heads.angle_predictor = nn.Linear(8, 2)  # sine and cosine
    calibrate(model.eval())
    return model
