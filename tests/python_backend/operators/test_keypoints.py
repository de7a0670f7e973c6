"""Keypoints are torchvision's ``heatmaps_to_keypoints`` and ``resize_keypoints``."""

import numpy as np
import pytest
import torch
from rcnn_backend.operators import keypoints as operator
from rcnn_backend.operators.keypoints import heatmaps_to_keypoints, resample, resize_keypoints
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints as torchvision_keypoints
from torchvision.models.detection.transform import resize_keypoints as torchvision_resize

NAN, INF = float("nan"), float("inf")
BOXES = {
    "sub-pixel": [[10.25, 7.5, 10.75, 7.6], [3.1, 3.1, 3.9, 4.3]],
    "degenerate": [[5, 5, 5, 5], [0, 0, 0, 0], [9, 9, 2, 3]],
    "one pixel": [[4, 6, 5, 7], [4.3, 6.3, 5.3, 7.3]],
    "thin": [[12.7, 1.2, 13.1, 300.9], [1.2, 12.7, 300.9, 13.1], [0, 0, 2.5, 700]],
    "as the heatmap": [[8, 8, 64, 64], [8.5, 8.5, 64.5, 64.5], [8, 8, 64.01, 63.99]],
    "smaller": [[20.2, 30.4, 44.9, 61.3], [20, 30, 27, 33]],
    "larger": [[100.6, 50.2, 223.4, 301.7], [0, 0, 113, 111]],
    "partly outside": [[-20.5, -31.25, 44.75, 90.5], [-300, -300, -250.5, -200]],
    "huge": [[0.4, 0.6, 1333, 800]],
}


def random_heatmaps(
    boxes: int, keypoints: int, side_hw: tuple[int, int] = (56, 56), seed: int = 0
) -> np.ndarray:
    """Noise, which has no ties."""
    return np.random.default_rng(seed).normal(0, 3, (boxes, keypoints, *side_hw)).astype(np.float32)


def peaked_heatmaps(boxes: int, keypoints: int) -> np.ndarray:
    """Heatmaps like those of a trained header: one peak in each heatmap, some at its border, low values elsewhere."""
    random = np.random.default_rng(boxes)
    centres = random.uniform(-1, 57, (boxes, keypoints, 2, 1))
    squares = (np.arange(56) - centres) ** 2 / 8  # [n, P, 2, 56]
    peaks = 14 * np.exp(-squares[:, :, 0, :, None] - squares[:, :, 1, None, :]) - 6
    return (peaks + random.normal(0, 0.1, peaks.shape)).astype(np.float32)


def expected_keypoints(heatmaps: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keypoints, scores = torchvision_keypoints(torch.from_numpy(heatmaps), torch.from_numpy(boxes))
    return keypoints.numpy(), scores.numpy()


def resized_value(heatmap: np.ndarray, box: np.ndarray, keypoint: np.ndarray) -> float:
    """torch's resized heatmap at a keypoint."""
    sides = np.maximum(box[2:] - box[:2], 1)
    width, height = np.ceil(sides).astype(int)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(heatmap)[None, None], size=(height, width), mode="bicubic", align_corners=False
    )[0, 0]
    x, y = ((keypoint[:2] - box[:2]) / sides * (width, height) - 0.5).round().astype(int)
    return float(resized[y, x])


def assert_as_torchvision(heatmaps: np.ndarray, boxes: np.ndarray) -> None:
    """Checks that keypoints are equal, except for ties, where torch's own heatmap has the same value at both pixels."""
    keypoints, scores = heatmaps_to_keypoints(heatmaps, boxes)
    assert keypoints.dtype == scores.dtype == np.float32
    expected, expected_scores = expected_keypoints(heatmaps.astype(np.float32), boxes)
    assert keypoints.shape == expected.shape
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=2e-6)  # the logits are up to 13
    np.testing.assert_array_equal(keypoints[..., 2], 1)
    for row, keypoint in np.argwhere(~np.isclose(keypoints, expected, rtol=0, atol=0.05).all(axis=-1)):
        heatmap = heatmaps[row, keypoint].astype(np.float32)
        ours = resized_value(heatmap, boxes[row], keypoints[row, keypoint])
        assert ours == pytest.approx(expected_scores[row, keypoint], rel=3e-6)


@pytest.mark.parametrize("keypoints", [1, 4, 17])
@pytest.mark.parametrize("name", BOXES)
def test_equals_torchvision(name: str, keypoints: int) -> None:
    boxes = np.array(BOXES[name], np.float32)
    for heatmaps in (random_heatmaps(len(boxes), keypoints), peaked_heatmaps(len(boxes), keypoints)):
        assert_as_torchvision(heatmaps, boxes)


@pytest.mark.parametrize("side_hw", [(1, 1), (2, 3), (3, 1), (28, 28), (80, 33)])
def test_heatmaps_of_any_size(side_hw: tuple[int, int]) -> None:
    boxes = np.array([box for group in BOXES.values() for box in group][:-1], np.float32)
    assert_as_torchvision(random_heatmaps(len(boxes), 3, side_hw), boxes)


def test_many_random_boxes_in_many_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "STRIP_PIXELS", 1000)  # less than one row of some heatmaps
    random = np.random.default_rng(1)
    corners = random.uniform(-50, 300, (40, 2))
    boxes = np.concatenate([corners, corners + np.exp(random.uniform(-1, 6, (40, 2)))], axis=1)
    assert_as_torchvision(random_heatmaps(40, 5), boxes.astype(np.float32))


def test_float16_is_computed_in_float32() -> None:
    boxes = np.array([[3.3, 4.4, 120.5, 90.2], [3, 4, 30, 20]], np.float32)
    assert_as_torchvision(random_heatmaps(2, 4).astype(np.float16), boxes)


def test_boxes_without_detections() -> None:
    keypoints, scores = heatmaps_to_keypoints(
        np.zeros((0, 17, 56, 56), np.float32), np.zeros((0, 4), np.float32)
    )
    assert keypoints.shape == (0, 17, 3)
    assert scores.shape == (0, 17)


def test_by_hand() -> None:
    # Two samples become four pixels, at -0.25, 0.25, 0.75 and 1.25. The last one's weights are -0.10546875 for the
    # first sample and 1.10546875 for the second, which is repeated beyond the border.
    heatmap = np.array([[[[0, 8]]]], np.float32)
    keypoints, scores = heatmaps_to_keypoints(heatmap, np.array([[10, 20, 13.5, 20.5]], np.float32))
    # The four pixels cover 3.5 pixels of the image; the height counts as one pixel.
    np.testing.assert_array_equal(keypoints, [[[10 + 3.5 * 3.5 / 4, 20.5, 1]]])
    np.testing.assert_array_equal(scores, [[8 * 1.10546875]])


def test_the_weights_are_those_of_torch() -> None:
    for size, resized in [(56, 203), (56, 57), (56, 13), (3, 1), (1, 4)]:
        impulses = torch.eye(size)[None, :, :, None]  # one channel per sample
        expected = torch.nn.functional.interpolate(impulses, size=(resized, 1), mode="bicubic")[0, :, :, 0].T
        np.testing.assert_allclose(resample(size, resized).matrix, expected, atol=1e-6)


def test_of_equal_values_the_first_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "STRIP_PIXELS", 1000)
    box = np.array([[10, 20, 122, 132]], np.float32)  # 112 x 112
    flat = np.zeros((1, 1, 56, 56), np.float32)
    np.testing.assert_array_equal(heatmaps_to_keypoints(flat, box)[0], [[[10.5, 20.5, 1]]])
    peaks = flat.copy()
    peaks[0, 0, [40, 9, 40], [50, 30, 5]] = (
        4  # each is largest in four pixels; in row-major order (9, 30) is first
    )
    keypoints, scores = heatmaps_to_keypoints(peaks, box)
    np.testing.assert_array_equal(keypoints, [[[10 + 60.5, 20 + 18.5, 1]]])
    assert scores[0, 0] == np.float32(4 * 0.87890625**2)


@pytest.mark.parametrize("level", [5.3, -2.7])
def test_a_constant_heatmap_is_a_tie_of_all_pixels(level: float) -> None:
    """Rounding decides where the keypoint is, here as in torchvision; it must be inside the box."""
    box = np.array([[10.2, 20.3, 120.5, 130.9]], np.float32)
    ((keypoint,),), ((score,),) = heatmaps_to_keypoints(np.full((1, 1, 56, 56), level, np.float32), box)
    assert (box[0, :2] < keypoint[:2]).all()
    assert (keypoint[:2] < box[0, 2:]).all()
    assert score == pytest.approx(level, rel=3e-6)


@pytest.mark.parametrize("values", [[NAN], [INF], [-INF], [NAN, INF], [INF, -INF], [INF, INF, INF]])
def test_nan_and_inf_as_in_torch(values: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN is the largest value. It affects only pixels that have it among their four samples."""
    monkeypatch.setattr(operator, "STRIP_PIXELS", 1000)
    boxes = np.array([[10.3, 20.6, 130.5, 181.25], [3, 4, 31, 25], [0, 0, 56, 56]], np.float32)
    heatmaps = random_heatmaps(3, 4)
    random = np.random.default_rng(len(values))
    heatmaps[:, 1, random.integers(3, 53, len(values)), random.integers(3, 53, len(values))] = values
    heatmaps[:, 3, -1, -1] = values[0]
    expected, expected_scores = expected_keypoints(heatmaps, boxes)
    keypoints, scores = heatmaps_to_keypoints(heatmaps, boxes)
    np.testing.assert_allclose(keypoints, expected, atol=0.05)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_a_broken_heatmap_leaves_the_others_of_its_box_alone() -> None:
    boxes = np.array(BOXES["larger"], np.float32)
    heatmaps = random_heatmaps(len(boxes), 2)
    whole, _ = heatmaps_to_keypoints(heatmaps, boxes)
    heatmaps[:, 1] = NAN
    keypoints, scores = heatmaps_to_keypoints(heatmaps, boxes)
    np.testing.assert_array_equal(keypoints[:, 0], whole[:, 0])
    assert np.isnan(scores).tolist() == [[False, True]] * len(boxes)


def test_resize_keypoints() -> None:
    random = np.random.default_rng(3)
    keypoints = random.uniform(0, 1300, (2, 5, 4, 3)).astype(np.float32)
    keypoints[..., 2] = random.integers(0, 2, keypoints.shape[:3])
    given = keypoints.copy()
    sizes = np.array([[800, 1066, 480, 640], [1333, 749, 4032, 2268]], np.float32)
    resized = resize_keypoints(keypoints, sizes)
    for image, (height, width, original_height, original_width) in enumerate(sizes.astype(int).tolist()):
        expected = torchvision_resize(
            torch.from_numpy(keypoints[image]), [height, width], [original_height, original_width]
        )
        np.testing.assert_array_equal(resized[image], expected)
    np.testing.assert_array_equal(keypoints, given)
    halved = resize_keypoints(
        np.array([[[[10, 20, 1]]]], np.float32), np.array([[200, 100, 100, 300]], np.float32)
    )
    np.testing.assert_array_equal(halved, [[[[30, 10, 1]]]])
    assert resize_keypoints(np.zeros((2, 0, 17, 3), np.float32), sizes).shape == (2, 0, 17, 3)
