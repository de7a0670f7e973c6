"""The exported mask header compared with torchvision's, and the mask branches that are refused."""

import numpy as np
import pytest
import torch
from rcnn_backend.steps.lost_tensors import take_samples
from rcnn_export.detector.checks import check_followed
from rcnn_export.detector.load import check_detector
from rcnn_export.detector.parameters import head_parameters, pool_parameters
from rcnn_export.detector.split import MaskHeaderModule
from rcnn_export.digits.detector import digits_detector
from rcnn_export.errors import ExportError
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference
from torchvision.ops import MultiScaleRoIAlign


@pytest.fixture
def model() -> MaskRCNN:
    plain = digits_detector()
    return MaskRCNN(plain.backbone, 5, rpn_anchor_generator=plain.rpn.anchor_generator).eval()


@torch.no_grad()
def test_the_header_is_torchvisions(model: MaskRCNN) -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 64, 14, 14, generator=random)
    labels = torch.tensor([[1, 4, 2, 0, 0, 0], [3, 3, 0, 0, 0, 0]])
    masks, samples = MaskHeaderModule(model)(features, labels)
    heads = model.roi_heads
    logits = heads.mask_predictor(heads.mask_head(features.flatten(0, 1)))
    expected = torch.cat(maskrcnn_inference(logits, [labels[:, :3].flatten()])).reshape(2, 3, 28, 28)
    assert masks.dtype == torch.float16
    torch.testing.assert_close(masks.float(), expected, atol=5e-4, rtol=0)
    np.testing.assert_allclose(
        samples, take_samples([features.numpy(), labels.numpy(), masks.numpy()]), atol=1e-6
    )


def test_the_parameters_are_those_of_the_detector(model: MaskRCNN) -> None:
    assert head_parameters(model).padded_counts == [1, 5, 10, 20, 40, 70, 100]
    model.roi_heads.detections_per_img = 3
    assert head_parameters(model).padded_counts == [1, 2, 3]
    model.roi_heads.mask_roi_pool = MultiScaleRoIAlign(["0", "1", "2", "3"], (10, 12), 0)
    pooling = pool_parameters(model, "mask_roi_pool")
    assert (pooling.output_size_hw, pooling.sampling_ratio) == ([10, 12], 0)
    assert pooling.feature_strides == [4, 8, 16, 32]


class OwnPool(MultiScaleRoIAlign):
    def forward(self, *arguments: object) -> torch.Tensor:  # type: ignore[override]
        return 2 * super().forward(*arguments)  # type: ignore[arg-type]


def test_mask_branches_that_would_answer_otherwise_are_refused(model: MaskRCNN) -> None:
    check_detector(model)
    heads = model.roi_heads
    pool, predictor = heads.mask_roi_pool, heads.mask_predictor
    heads.mask_roi_pool = OwnPool(pool.featmap_names, 14, 2)
    with pytest.raises(
        ExportError, match=r"OwnPool\.forward of roi_heads\.mask_roi_pool is not torchvision's"
    ):
        check_followed(model)
    heads.mask_roi_pool = MultiScaleRoIAlign(["0", "1"], 14, 2)
    with pytest.raises(
        ExportError, match=r"mask_roi_pool pools the feature maps \['0', '1'\] and box_roi_pool"
    ):
        check_detector(model)
    heads.mask_roi_pool = pool
    heads.mask_predictor = MaskRCNNPredictor(256, 256, 1)
    with pytest.raises(ExportError, match=r"mask_predictor gives .* one mask for each of the 5 classes"):
        check_detector(model)
    heads.mask_predictor = nn.Linear(3, 3)
    with pytest.raises(ExportError, match="mask_head and mask_predictor cannot be run"):
        check_detector(model)
    heads.mask_predictor = None
    with pytest.raises(ExportError, match="is a MaskRCNN without a mask head: set mask_roi_pool"):
        check_detector(model)
    heads.mask_predictor = predictor
    heads.keypoint_roi_pool = heads.keypoint_head = heads.keypoint_predictor = nn.Identity()
    with pytest.raises(ExportError, match="has a keypoint head: mask_rcnn exports boxes and masks only"):
        check_detector(model)
