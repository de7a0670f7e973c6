"""Multi-level RoIAlign is torchvision's MultiScaleRoIAlign."""

from collections import OrderedDict

import numpy as np
import torch
from rcnn_backend.contract.parameters import PoolParameters
from rcnn_backend.operators.roi_align import assign_levels, multi_scale_roi_align
from torchvision.ops import MultiScaleRoIAlign, roi_align

STRIDES = [4, 8, 16, 32]


def parameters(strides: list[int] = STRIDES, sampling_ratio: int = 2) -> PoolParameters:
    return PoolParameters(strides, 224, 4, [7, 7], sampling_ratio)


def random_boxes(count: int, side: int, random: np.random.Generator) -> np.ndarray:
    corners = np.sort(random.uniform(0, side, (count, 2, 2)), axis=1)
    return corners.reshape(count, 4).astype(np.float32)  # x1, y1, x2, y2


def test_equals_torchvision() -> None:
    random = np.random.default_rng(0)
    side, counts = 512, [40, 0, 7]
    features = [random.standard_normal((3, 8, side // s, side // s), np.float32) for s in STRIDES]
    proposals = np.zeros((3, 40, 4), np.float32)
    for image, count in enumerate(counts):
        proposals[image, :count] = random_boxes(count, side, random) * random.choice(
            [0.1, 0.5, 1], (count, 1)
        )
    for sampling_ratio in (2, 0, -1):
        pooled = multi_scale_roi_align(
            features, proposals, np.array(counts)[:, None], parameters(sampling_ratio=sampling_ratio)
        )
        pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio)
        expected = pooler(
            OrderedDict((str(level), torch.from_numpy(feature)) for level, feature in enumerate(features)),
            [torch.from_numpy(proposals[image, :count]) for image, count in enumerate(counts)],
            [(side, side)] * 3,
        ).numpy()
        np.testing.assert_allclose(pooled[0], expected[:40], atol=1e-5)
        np.testing.assert_allclose(pooled[2, :7], expected[40:], atol=1e-5)
        assert not pooled[1].any()
        assert not pooled[2, 7:].any()


def test_any_number_of_channels_levels_and_cells() -> None:
    random = np.random.default_rng(1)
    for channels, strides, size_hw in [
        (1, [16], (3, 5)),
        (19, [8, 16], (7, 5)),
        (40, [4, 8, 16, 32, 64], (2, 9)),
    ]:
        features = [random.standard_normal((1, channels, 320 // s, 448 // s), np.float32) for s in strides]
        proposals = random_boxes(9, 300, random)[None] - 20  # some start outside
        proposals[0, 0] = [500, 400, 520, 410]  # completely outside
        pooling = PoolParameters(strides, 224, 4, list(size_hw), 2)
        pooled = multi_scale_roi_align(features, proposals, np.array([[9]]), pooling)
        levels = assign_levels(proposals[0], pooling)
        for box, level, ours in zip(proposals[0], levels, pooled[0], strict=True):
            theirs = roi_align(
                torch.from_numpy(features[level]),
                [torch.from_numpy(box[None])],
                size_hw,
                1 / strides[level],
                2,
            )
            np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-5)


def test_no_proposal_and_half_precision() -> None:
    features = [np.ones((2, 8, 64 // s, 64 // s), np.float16) for s in STRIDES]
    proposals = np.tile(np.array([8, 8, 40, 40], np.float32), (2, 3, 1))
    pooled = multi_scale_roi_align(features, proposals, np.array([[0], [2]], np.int32), parameters())
    assert pooled.dtype == np.float16
    np.testing.assert_array_equal(pooled[1, :2], 1)
    assert not pooled[0].any()
    assert not pooled[1, 2].any()


def test_a_ramp_pools_to_its_own_coordinates() -> None:
    # feature(y, x) = x, one level of stride 4: the bin centres of a 28 px wide box from x = 8 to 36
    # are at 2 + 0.5, 2 + 1.5, ... feature pixels; without alignment these are also the pooled values.
    ramp = np.broadcast_to(np.arange(32, dtype=np.float32), (1, 1, 32, 32)).copy()
    box = np.array([[[8, 8, 36, 36]]], np.float32)
    pooled = multi_scale_roi_align([ramp], box, np.array([[1]]), parameters([4]))
    np.testing.assert_allclose(pooled[0, 0, 0, 0], np.arange(7) + 2.5, atol=1e-6)


def test_levels_follow_the_fpn_paper() -> None:
    def square(side: float) -> list[float]:
        return [0, 0, side, side]

    sides = [0, 10, 111.9, 112, 223.9, 224, 447.9, 448, 5000]
    levels = assign_levels(np.array([square(side) for side in sides], np.float32), parameters())
    np.testing.assert_array_equal(levels, [0, 0, 0, 1, 1, 2, 2, 3, 3])
    # mobilenet's two levels have the same stride: torchvision pools all boxes from the first
    np.testing.assert_array_equal(
        assign_levels(np.array([square(900)], np.float32), parameters([32, 32])), [0]
    )


def test_a_box_of_negative_size_leaves_the_others_alone() -> None:
    random = np.random.default_rng(2)
    features = [random.standard_normal((1, 3, 64 // s, 64 // s), np.float32) for s in STRIDES]
    boxes = np.array([[4, 4, 40, 40], [10, 10, 5, 20], [8, 8, 20, 30]], np.float32)
    pooled = multi_scale_roi_align(features, boxes[None], np.array([[3]]), parameters())
    others = multi_scale_roi_align(features, boxes[None, ::2], np.array([[2]]), parameters())
    np.testing.assert_array_equal(pooled[0, ::2], others[0])
