"""A detector that is built in milliseconds."""

from collections.abc import Callable

import pytest
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

Build = Callable[..., FasterRCNN]


@pytest.fixture
def build() -> Build:
    """Builds a detector with one feature map of stride 8 and 3 classes; the arguments are those of FasterRCNN."""

    def detector(**settings: object) -> FasterRCNN:
        backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 8, 1))
        backbone.out_channels = 4
        small = {
            "rpn_anchor_generator": AnchorGenerator(((16, 32),), ((1.0,),)),
            "box_roi_pool": MultiScaleRoIAlign(["0"], 3, 2),
            "box_head": TwoMLPHead(4 * 9, 16),
            "box_predictor": FastRCNNPredictor(16, 3),
            "min_size": 64,
            "max_size": 96,
        }
        return FasterRCNN(backbone, **(small | settings)).eval()

    return detector
