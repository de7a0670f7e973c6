"""Keypoints are torchvision's, for any heatmaps and boxes."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from rcnn_backend.devices import Cpu, Device
from rcnn_backend.operators.keypoints import heatmaps_to_keypoints
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints as expected_keypoints

from . import reference
from .cases import BATCH, CASES, cases
from .strategies import FINITE, array_of, boxes

HEATS = ((np.arange(256) - 128) / 16).astype(np.float32)  # exact in FP16
MAX_SIDE = 300


@st.composite
def heatmaps_in_boxes(draw: st.DrawFn) -> dict[str, Any]:
    """The heatmaps of one keypoint in each of several boxes, none of which is large."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    drawn = draw(boxes(BATCH, table=FINITE))
    drawn[:, 2:] = np.minimum(drawn[:, 2:], drawn[:, :2] + MAX_SIDE)
    return {
        "heatmaps": draw(array_of(HEATS, BATCH, 1, height, width)).astype(
            draw(st.sampled_from([np.float32, np.float16]))
        ),
        "boxes": drawn,
    }


def check_keypoints(device: Device, heatmaps: np.ndarray, boxes: np.ndarray) -> None:
    """Checks that keypoints are equal, except for ties, where torch's own heatmap has the same value at both pixels."""
    with device.active():
        found = heatmaps_to_keypoints(device.upload(heatmaps), device.upload(boxes))
        keypoints, scores = device.download(list(found))
    floats = heatmaps.astype(np.float32)
    expected, expected_scores = (
        each.cpu().numpy()
        for each in expected_keypoints(reference.tensor(floats, device), reference.tensor(boxes, device))
    )
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(keypoints[..., 2], 1)
    differs = ~np.isclose(keypoints, expected, rtol=1e-6, atol=0.05).all(axis=(1, 2))
    for row in np.flatnonzero(differs):
        ours = resized_value(floats[row, 0], boxes[row], keypoints[row, 0], device)
        np.testing.assert_allclose(ours, expected_scores[row, 0], rtol=3e-6, atol=2e-6)


def resized_value(heatmap: np.ndarray, box: np.ndarray, keypoint: np.ndarray, device: Device) -> float:
    """torch's resized heatmap at a keypoint."""
    extent = np.maximum(box[2:] - box[:2], 1)
    width, height = np.ceil(extent).astype(int)
    resized = torch.nn.functional.interpolate(
        reference.tensor(heatmap, device)[None, None], size=(height, width), mode="bicubic"
    )[0, 0]
    x, y = ((keypoint[:2] - box[:2]) / extent * (width, height) - 0.5).round().astype(int)
    return float(resized[y, x])


@cases(CASES["keypoints"], a_call=BATCH)
@given(heatmaps_in_boxes())
def test_keypoints(drawn: dict[str, Any]) -> None:
    check_keypoints(Cpu(), **drawn)
