"""RoIAlign over a pyramid is torchvision's, for any finite boxes: outside, huge, without area."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rcnn_backend.contract.parameters import PoolParameters
from rcnn_backend.devices import Cpu, Device
from rcnn_backend.operators.roi_align import multi_scale_roi_align

from . import reference
from .cases import BATCH, CASES, cases
from .strategies import FINITE, array_of, boxes

FEATURES = ((np.arange(256) - 128) / 32).astype(np.float32)  # exact in FP16
TOLERANCES = {np.float32: 1e-5, np.float16: 2e-3}  # relative to the largest feature


@st.composite
def pooled_boxes(draw: st.DrawFn) -> dict[str, Any]:
    """A pyramid and boxes of each image of a batch."""
    strides = draw(st.sampled_from([[4, 8, 16], [8, 32]]))
    height, width = (draw(st.integers(1, 3)) * strides[-1] for _ in range(2))
    dtype = draw(st.sampled_from([np.float32, np.float16]))
    rois = draw(st.integers(1, 8))
    sampling_ratio = draw(st.sampled_from([2, 0]))
    drawn = draw(boxes(BATCH, rois, table=FINITE))
    # Without a ratio there are as many samples as a box has pixels, so keep the boxes in the picture, like proposals.
    if not sampling_ratio:
        drawn = drawn.clip(0, np.array([width, height, width, height], np.float32))
    return {
        "features": [
            draw(array_of(FEATURES, BATCH, 1, height // stride, width // stride)).astype(dtype)
            for stride in strides
        ],
        "proposals": np.maximum(drawn, np.tile(drawn[..., :2], 2)),  # no side is negative
        "counts": [draw(st.integers(0, rois)) for _ in range(BATCH)],
        "size_hw": (height, width),
        "parameters": PoolParameters(
            strides,
            draw(st.sampled_from([224, 16, 8])),
            draw(st.integers(2, 6)),
            draw(st.sampled_from([[7, 7], [2, 3]])),
            sampling_ratio,
        ),
    }


def check_roi_align(
    device: Device,
    features: list[np.ndarray],
    proposals: np.ndarray,
    counts: list[int],
    size_hw: tuple[int, int],
    parameters: PoolParameters,
) -> None:
    real = [own[:count] for own, count in zip(proposals, counts, strict=True)]
    expected = reference.roi_align(features, real, size_hw, parameters, device)
    with device.active():
        pyramid = [device.upload(feature) for feature in features]
        numbers = device.upload(np.array(counts, np.int32)[:, None])
        (pooled,) = device.download(
            [multi_scale_roi_align(pyramid, device.upload(proposals), numbers, parameters)]
        )
    assert pooled.dtype == features[0].dtype
    is_real = np.arange(proposals.shape[1]) < np.array(counts)[:, None]
    tolerance = TOLERANCES[pooled.dtype.type] * max(np.abs(feature).max() for feature in features)
    np.testing.assert_allclose(pooled[is_real], expected, rtol=0, atol=float(tolerance))
    assert not pooled[~is_real].any()


@cases(CASES["roi_align"], a_call=BATCH)
@given(pooled_boxes())
def test_roi_align(drawn: dict[str, Any]) -> None:
    check_roi_align(Cpu(), **drawn)
