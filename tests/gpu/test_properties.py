"""The properties of tests/properties on a GPU: the CuPy operators are compared with torchvision on the same GPU."""

from typing import Any

import pytest

pytest.importorskip("cupy")
from hypothesis import given
from rcnn_backend.devices import Gpu

from ..properties.cases import BATCH, GPU_CASES, cases
from ..properties.test_keypoints import check_keypoints, heatmaps_in_boxes
from ..properties.test_masks import check_masks, masks_in_boxes
from ..properties.test_pictures import check_preprocess, pictures_to_resize
from ..properties.test_proposals_and_detections import (
    anchors,
    check_detections,
    check_proposals,
    classified,
)
from ..properties.test_roi_align import check_roi_align, pooled_boxes

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return Gpu(0)


@cases(GPU_CASES["proposals"], a_call=BATCH)
@given(drawn=anchors())
def test_proposals(gpu: Gpu, drawn: dict[str, Any]) -> None:
    check_proposals(gpu, **drawn)


@cases(GPU_CASES["detections"], a_call=BATCH)
@given(drawn=classified())
def test_detections(gpu: Gpu, drawn: dict[str, Any]) -> None:
    check_detections(gpu, **drawn)


@cases(GPU_CASES["roi_align"], a_call=BATCH)
@given(drawn=pooled_boxes())
def test_roi_align(gpu: Gpu, drawn: dict[str, Any]) -> None:
    check_roi_align(gpu, **drawn)


@cases(GPU_CASES["keypoints"], a_call=BATCH)
@given(drawn=heatmaps_in_boxes())
def test_keypoints(gpu: Gpu, drawn: dict[str, Any]) -> None:
    check_keypoints(gpu, **drawn)


@cases(GPU_CASES["masks"], a_call=BATCH)
@given(drawn=masks_in_boxes())
def test_masks(gpu: Gpu, drawn: dict[str, Any]) -> None:
    check_masks(gpu, **drawn)


@cases(GPU_CASES["preprocess"])
@given(drawn=pictures_to_resize())
def test_preprocess(gpu: Gpu, drawn: dict[str, Any]) -> None:
    check_preprocess(gpu, **drawn, atol=1e-5)
