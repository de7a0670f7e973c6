"""Strides equal those that torchvision infers, whatever size pictures are padded to."""

from collections.abc import Callable

import pytest
import torch
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.detector.shapes import pooled_strides, pooler_with_strides
from rcnn_export.errors import ExportError
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

SIZES_DIVISIBLE = [1, 3, 20, 32, 48]


@pytest.fixture
def model(digits: Detector, monkeypatch: pytest.MonkeyPatch) -> FasterRCNN:
    """The sample detector; a test may change its transform."""
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


Build = Callable[..., FasterRCNN]


def test_a_stride_that_is_no_power_of_two_is_rounded_as_torchvision_rounds_it(build: Build) -> None:
    model = build(min_size=256, max_size=400)
    model.backbone[0] = nn.Conv2d(3, 4, 11, 36)
    assert pooled_strides(model) == [32]
    with torch.no_grad():
        model([torch.rand(3, 300, 400)])
    assert model.roi_heads.box_roi_pool.scales == [1 / 32]


def test_strides_that_depend_on_the_first_picture_are_refused(build: Build) -> None:
    model = build(min_size=96, max_size=128)
    model.backbone[0] = nn.Conv2d(3, 4, 11, 48, 5)  # 96 px become 2 rows, and 128 px become 3
    with pytest.raises(
        ExportError,
        match=r"infers different strides from pictures of different sizes \(\[64\] at 96x128, \[64\] at 96x96, \[32\] at 128x96\)",
    ):
        pooled_strides(model)


def test_scales_that_the_detector_has_already_stay(build: Build) -> None:
    pooler = MultiScaleRoIAlign(["0"], 3, 2)
    pooler.scales, pooler.map_levels = [1 / 12], initLevelMapper(3, 3)
    assert pooled_strides(build(box_roi_pool=pooler)) == [12]
    pooler.scales = [0.3]
    with pytest.raises(ExportError, match="expected 1 / stride"):
        pooled_strides(build(box_roi_pool=pooler))


def test_levels_that_torchvision_would_pool_zeros_from_are_refused(
    digits: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits.model.roi_heads, "box_roi_pool", MultiScaleRoIAlign(["0", "2"], 7, 2))
    with pytest.raises(ExportError, match=r"strides .4, 16.: expected the finest first"):
        pooled_strides(digits.model)
