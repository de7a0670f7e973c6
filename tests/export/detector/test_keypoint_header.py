"""The exported keypoint header compared with torchvision's, and the keypoint branches that are refused."""

import numpy as np
import pytest
import torch
from rcnn_backend.steps.lost_tensors import take_samples
from rcnn_export.detector.load import check_detector
from rcnn_export.detector.shapes import tensor_sizes
from rcnn_export.detector.split import KeypointHeaderModule
from rcnn_export.digits.detector import digits_detector
from rcnn_export.errors import ExportError
from torch import nn
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign


@pytest.fixture
def model() -> KeypointRCNN:
    plain = digits_detector()
    return KeypointRCNN(
        plain.backbone,
        5,
        rpn_anchor_generator=plain.rpn.anchor_generator,
        keypoint_head=KeypointRCNNHeads(64, (8,)),
        keypoint_predictor=KeypointRCNNPredictor(8, 3),
    ).eval()


@torch.no_grad()
def test_the_header_is_torchvisions(model: KeypointRCNN) -> None:
    features = torch.randn(2, 3, 64, 14, 14, generator=torch.Generator().manual_seed(0))
    heatmaps, samples = KeypointHeaderModule(model)(features)
    heads = model.roi_heads
    expected = heads.keypoint_predictor(heads.keypoint_head(features.flatten(0, 1)))
    torch.testing.assert_close(heatmaps, expected.reshape(2, 3, 3, 56, 56))
    np.testing.assert_allclose(samples, take_samples([features.numpy(), heatmaps.numpy()]), atol=1e-6)


def test_sizes_are_those_of_the_detectors_own_head(model: KeypointRCNN) -> None:
    sizes = tensor_sizes(model)
    assert (sizes["keypoints"], sizes["map_height"], sizes["map_width"]) == (3, 56, 56)
    assert (sizes["head_pooled_height"], sizes["head_pooled_width"]) == (14, 14)


def test_keypoint_branches_that_would_answer_otherwise_are_refused(model: KeypointRCNN) -> None:
    check_detector(model)
    heads = model.roi_heads
    pool, predictor = heads.keypoint_roi_pool, heads.keypoint_predictor
    heads.keypoint_roi_pool = MultiScaleRoIAlign(["0", "1"], 14, 2)
    with pytest.raises(
        ExportError, match=r"keypoint_roi_pool pools the feature maps \['0', '1'\] and box_roi"
    ):
        check_detector(model)
    heads.keypoint_roi_pool = pool
    heads.keypoint_predictor = nn.Flatten()
    with pytest.raises(ExportError, match=r"keypoint_predictor gives .* a square heatmap for each"):
        check_detector(model)
    heads.keypoint_predictor = nn.Linear(3, 3)
    with pytest.raises(ExportError, match="keypoint_head and keypoint_predictor cannot be run"):
        check_detector(model)
    heads.keypoint_predictor = None
    with pytest.raises(ExportError, match="is a KeypointRCNN without a keypoint head: set keypoint_roi_pool"):
        check_detector(model)
    heads.keypoint_predictor = predictor
    heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = nn.Identity()
    with pytest.raises(ExportError, match="has a mask head: keypoint_rcnn exports boxes and keypoints only"):
        check_detector(model)
