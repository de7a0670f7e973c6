"""Strides are those that torchvision infers, whatever pictures are padded to."""

import pytest
import torch
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.detector.shapes import pooled_strides, pooler_with_strides
from torchvision.models.detection import FasterRCNN

SIZES_DIVISIBLE = [1, 3, 20, 32, 48]


@pytest.fixture
def model(digits: Detector, monkeypatch: pytest.MonkeyPatch) -> FasterRCNN:
    """The sample, whose transform a test may change."""
    monkeypatch.setattr(digits.model.transform, "size_divisible", digits.model.transform.size_divisible)
    return digits.model


@pytest.mark.parametrize("size_divisible", SIZES_DIVISIBLE)
def test_strides_do_not_depend_on_the_padding(model: FasterRCNN, size_divisible: int) -> None:
    model.transform.size_divisible = size_divisible
    assert pooled_strides(model) == [4, 8, 16, 32]


@pytest.mark.parametrize("size_divisible", [1, 32])
def test_strides_are_those_of_a_picture_that_torchvision_sees(model: FasterRCNN, size_divisible: int) -> None:
    fresh = load_detector("rcnn_export.digits.detector:digits_detector").model
    fresh.transform.size_divisible = model.transform.size_divisible = size_divisible
    with torch.no_grad():
        fresh([torch.rand(3, 375, 500)])
    assert [1 / scale for scale in fresh.roi_heads.box_roi_pool.scales] == pooled_strides(model)


def test_the_detectors_own_pooler_stays_as_it_is(model: FasterRCNN) -> None:
    scales = model.roi_heads.box_roi_pool.scales
    assert pooler_with_strides(model) is not model.roi_heads.box_roi_pool
    assert model.roi_heads.box_roi_pool.scales is scales
