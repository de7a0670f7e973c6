"""Masks pasted on a GPU equal those pasted on a CPU in every pixel."""

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
from rcnn_backend.contract.parameters import RleParameters  # noqa: E402
from rcnn_backend.operators.rles import encode_rles, paste_masks  # noqa: E402

pytestmark = pytest.mark.gpu
RANDOM = np.random.default_rng(7)


def random_boxes(batch: int, count: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Boxes [B, n, 4] inside the picture, across its border and outside."""
    height, width = size_hw
    corners = np.sort(RANDOM.uniform(-0.3, 1.3, (batch, count, 2, 2)) * (width, height), axis=2)
    return np.asarray(corners.reshape(batch, count, 4), np.float32)


@pytest.mark.parametrize("size_hw", [(1, 1), (7, 300), (211, 97), (1200, 1600)])
@pytest.mark.parametrize("mask_size_hw", [(28, 28), (14, 28)])
@pytest.mark.parametrize("kind", ["noise", "ties"])
def test_equals_the_cpu(size_hw: tuple[int, int], mask_size_hw: tuple[int, int], kind: str) -> None:
    """Images with all, some and no detections, each with its own threshold."""
    shape = 4, 20, *mask_size_hw
    masks = RANDOM.random(shape) if kind == "noise" else RANDOM.choice([0, 0.25, 0.5, 0.75, 1], shape)
    masks, boxes = masks.astype(np.float16), random_boxes(4, 20, size_hw)
    counts = np.array([[20], [7], [0], [1]], np.int32)
    sizes = np.tile(np.array([*size_hw, *size_hw], np.float32), (4, 1))
    parameters = [RleParameters(thresh) for thresh in (0.5, 0.3, 0.5, 1.0)]
    expected = encode_rles(masks, boxes, counts, sizes, parameters)
    found = encode_rles(cupy.asarray(masks), boxes, counts, sizes, parameters)
    np.testing.assert_array_equal(found, expected)


def test_by_hand() -> None:
    # torchvision's frame of one pixel is two pixels wide; the last mask continues from column to column
    boxes = np.array([[-40, -40, -20, -20], [0, 0, 1, 1], [-90, -90, 90, 90]], np.float32)
    edges = paste_masks(cupy.ones((3, 28, 28), np.float16), boxes, (3, 4), 0.5)
    assert [each.tolist() for each in edges] == [[], [0, 2, 3, 5], [0, 3, 3, 6, 6, 9, 9, 12]]


def test_on_a_stream_of_its_own_and_not_contiguous() -> None:
    masks, boxes = RANDOM.random((1, 9, 28, 28)).astype(np.float16), random_boxes(1, 9, (90, 120))
    rest = np.array([[9]], np.int32), np.array([[90, 120, 90, 120]], np.float32), [RleParameters(0.5)]
    with cupy.cuda.Stream(non_blocking=True):
        on_gpu = cupy.asarray(masks.transpose(0, 1, 3, 2).copy()).transpose(0, 1, 3, 2)
        found = encode_rles(on_gpu, boxes, *rest)
    np.testing.assert_array_equal(found, encode_rles(masks, boxes, *rest))
