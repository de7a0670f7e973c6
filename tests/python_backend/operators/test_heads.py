"""The detections that a head runs on: pooled as in torchvision, packed, and put back in their places."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from rcnn_backend.contract.parameters import HeadParameters, PoolParameters
from rcnn_backend.operators.heads import pad_rows, padded_count, pool_detections, real_rows, run_packed
from torchvision.ops import MultiScaleRoIAlign

STEPS = HeadParameters([1, 2, 4, 6])
POOLING = PoolParameters([4, 8], 224, 4, [14, 14], 2)
DETECTIONS = 6


def make_batch(counts: list[int]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Features of two levels, boxes, labels and counts; rows without a detection are zero."""
    random = np.random.default_rng(sum(counts))
    batch = len(counts)
    features = [random.standard_normal((batch, 3, side, side)).astype(np.float32) for side in (64, 32)]
    corners = random.uniform(0, 120, (batch, DETECTIONS, 2))
    boxes = np.concatenate([corners, corners + random.uniform(1, 130, corners.shape)], axis=2)
    labels = random.integers(1, 5, (batch, DETECTIONS))
    for image, count in enumerate(counts):
        boxes[image, count:] = labels[image, count:] = 0
    return features, boxes.astype(np.float32), labels, np.array(counts, np.int32)[:, None]


@pytest.mark.parametrize("counts", [[0], [1], [6], [0, 0, 0], [3, 0, 6], [6, 6], [1, 0, 0, 6]])
def test_detections_are_pooled_as_torchvision_pools_them(counts: list[int]) -> None:
    features, boxes, _, num_detections = make_batch(counts)
    pooled = pool_detections(features, boxes, num_detections, STEPS, POOLING)
    assert pooled.shape == (len(counts), padded_count(max(counts), STEPS), 3, 14, 14)
    pooler = MultiScaleRoIAlign(["0", "1"], 14, 2)
    levels = OrderedDict((str(level), torch.from_numpy(array)) for level, array in enumerate(features))
    own = [torch.from_numpy(boxes[image, :count]) for image, count in enumerate(counts)]
    expected = pooler(levels, own, [(256, 256)] * len(counts)).numpy()
    real = np.arange(pooled.shape[1]) < num_detections
    np.testing.assert_allclose(pooled[real], expected, atol=1e-5)
    assert not pooled[~real].any()


@pytest.mark.parametrize(
    ("counts", "rows"), [([0], 1), ([0, 0], 1), ([5], 6), ([6, 0, 0], 2), ([1, 1, 1], 1), ([6, 6, 5], 6)]
)
def test_a_head_runs_on_the_detections_of_all_images_side_by_side(counts: list[int], rows: int) -> None:
    features, boxes, labels, num_detections = make_batch(counts)
    pooled = pool_detections(features, boxes, num_detections, STEPS, POOLING)
    seen = []

    def head(packed: np.ndarray, packed_labels: np.ndarray) -> np.ndarray:
        assert packed_labels.shape == (len(counts), DETECTIONS)
        seen.append(packed.shape[:2])
        return packed[:, :, 0] * packed_labels[:, : packed.shape[1], None, None]

    made = run_packed(head, pooled, labels, num_detections, STEPS)
    assert seen == [(len(counts), rows)]
    expected = pooled[:, :, 0] * labels[:, : pooled.shape[1], None, None]
    np.testing.assert_array_equal(made, real_rows(expected, num_detections))
    padded = pad_rows(made, num_detections, DETECTIONS)
    assert padded.shape == (len(counts), DETECTIONS, 14, 14)
    np.testing.assert_array_equal(padded[:, : pooled.shape[1]], expected)
    assert not padded[:, pooled.shape[1] :].any()
