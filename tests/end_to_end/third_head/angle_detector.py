"""A detector of a made-up family, whose third head finds an angle for each detection."""

from angle_rcnn import AngleRCNN
from rcnn_export.detector.load import Detector
from small_detectors import calibrated, small_parts
from torch import nn
from torchvision.ops import MultiScaleRoIAlign


def angle_detector() -> Detector:
    """A small detector with random weights."""
    model = AngleRCNN(**small_parts())
    heads, channels = model.roi_heads, model.backbone.out_channels
    heads.angle_roi_pool = MultiScaleRoIAlign(heads.box_roi_pool.featmap_names, 6, 2)
    heads.angle_head = nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    heads.angle_predictor = nn.Linear(8, 2)  # sine and cosine
    return calibrated(model)
