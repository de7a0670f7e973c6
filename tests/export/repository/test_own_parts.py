"""A detector with a user's own parts is exported through their code, and answers as torchvision does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rcnn_backend.pipeline import Pipeline
from rcnn_export.detector.load import Detector
from rcnn_export.photos import load_photo
from rcnn_export.repository.write import export_repository
from rcnn_export.verify.pipeline_stages import PipelineStages
from rcnn_export.verify.stages import Verification
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

pytestmark = pytest.mark.xdist_group("export")

SIZES_HW = [(240, 320), (320, 200), (100, 180), (500, 400)]


class Predictor(nn.Module):
    """A predictor with other layer names than FastRCNNPredictor."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.boxes = nn.Linear(16, 4), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 4 * self.scores(x), self.boxes(x)


class RpnHead(nn.Module):
    """An RPN head with a single convolution for scores and boxes."""

    def __init__(self, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors
        self.conv = nn.Conv2d(8, 5 * anchors, 1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        outputs = [self.conv(feature) for feature in features]
        return [each[:, : self.anchors] for each in outputs], [each[:, self.anchors :] for each in outputs]


def strided_detector() -> FasterRCNN:
    """A detector with AlexNet's kernels and strides and 8 channels: 256 rows become 7, which are pooled at 1/32."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 8, 5, padding=2),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.MaxPool2d(3, 2),
    )
    backbone.out_channels = 8
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128),), ((0.5, 1.0, 2.0),)),
        rpn_head=RpnHead(9),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(72, 16))),
        box_predictor=Predictor(),
        image_mean=torch.tensor([0.4, 0.5, 0.6]),
        image_std=[0.25],
        min_size=(200, 256),
        max_size=400.0,
        box_detections_per_img=300,
    ).eval()


@pytest.mark.long
def test_boxes_are_torchvisions_at_every_size(tmp_path: Path) -> None:
    model = strided_detector()
    export_repository(
        Detector(model, "strided", "random", ["__background__", "a", "b", "c"]), tmp_path, "own"
    )
    pipeline = Pipeline.load(tmp_path, "own")
    assert pipeline.pool_parameters.feature_strides == [32]
    verification = Verification(model, PipelineStages(pipeline))
    photo = load_photo("chelsea")
    for height, width in SIZES_HW:
        verification.add(f"{height}x{width}", [np.asarray(photo.resize((width, height)))])
    assert verification.holds, verification.first_divergence
    assert verification.comparisons["detections", "end to end"].rows > 100
