"""GPU keypoints are torchvision's ``heatmaps_to_keypoints`` on the same GPU."""

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
import torch  # noqa: E402
from rcnn_backend.devices import Gpu  # noqa: E402
from rcnn_backend.operators.keypoints import heatmaps_to_keypoints, resize_keypoints, warm_up  # noqa: E402
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints as expected_keypoints  # noqa: E402

pytestmark = pytest.mark.gpu
NAN, INF = float("nan"), float("inf")
BOXES = np.array(
    [
        [10.25, 7.5, 10.75, 7.6],  # sub-pixel
        [5, 5, 5, 5],
        [9, 9, 2, 3],
        [12.7, 1.2, 13.1, 300.9],  # thin
        [1.2, 12.7, 300.9, 13.1],
        [8, 8, 64, 64],  # as large as the heatmap
        [20.2, 30.4, 44.9, 61.3],
        [100.6, 50.2, 223.4, 301.7],
        [-20.5, -31.25, 44.75, 90.5],  # partly outside
        [0.4, 0.6, 1333, 800],
    ],
    np.float32,
)


def random_heatmaps(*shape: int) -> np.ndarray:
    """Noise, which has no ties."""
    return np.random.default_rng(sum(shape)).normal(0, 3, shape).astype(np.float32)


def found_on_gpu(heatmaps: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keypoints, scores = heatmaps_to_keypoints(cupy.asarray(heatmaps), cupy.asarray(boxes))
    assert keypoints.dtype == scores.dtype == np.float32
    assert keypoints.shape == (*heatmaps.shape[:2], 3)
    return keypoints.get(), scores.get()


def assert_as_torchvision(heatmaps: np.ndarray, boxes: np.ndarray) -> None:
    keypoints, scores = found_on_gpu(heatmaps, boxes)
    expected, expected_scores = expected_keypoints(
        torch.from_numpy(heatmaps).cuda().float(), torch.from_numpy(boxes).cuda()
    )
    np.testing.assert_allclose(scores, expected_scores.cpu(), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(keypoints, expected.cpu(), rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("keypoints", [1, 4, 17])
def test_equals_torchvision(keypoints: int, dtype: type) -> None:
    assert_as_torchvision(random_heatmaps(len(BOXES), keypoints, 56, 56).astype(dtype), BOXES)


@pytest.mark.parametrize("side_hw", [(14, 20), (28, 28), (112, 96)])
def test_heatmaps_of_any_size(side_hw: tuple[int, int]) -> None:
    assert_as_torchvision(random_heatmaps(len(BOXES), 3, *side_hw), BOXES)


def test_many_random_boxes() -> None:
    random = np.random.default_rng(1)
    corners = random.uniform(-50, 300, (200, 2))
    boxes = np.concatenate([corners, corners + np.exp(random.uniform(-1, 6, (200, 2)))], axis=1)
    assert_as_torchvision(random_heatmaps(200, 5, 56, 56), boxes.astype(np.float32))


def test_of_equal_values_the_first_is_taken() -> None:
    box = np.array([[10, 20, 122, 132]], np.float32)  # 112 x 112
    heatmaps = np.zeros((1, 2, 56, 56), np.float32)
    heatmaps[0, 1, [40, 9, 40], [50, 30, 5]] = 4  # each is largest in four pixels; (9, 30) is the first
    keypoints, scores = found_on_gpu(heatmaps, box)
    np.testing.assert_array_equal(keypoints, [[[10.5, 20.5, 1], [10 + 60.5, 20 + 18.5, 1]]])
    np.testing.assert_array_equal(scores, [[0, np.float32(4 * 0.87890625**2)]])


@pytest.mark.parametrize("values", [[NAN], [INF], [-INF], [NAN, INF], [INF, -INF]])
def test_nan_and_inf_stay_in_their_heatmap(values: list[float]) -> None:
    """That heatmap's result depends on the compiler: whether inf meets a weight of exactly 0, and which NaN is first."""
    heatmaps = random_heatmaps(len(BOXES), 3, 56, 56)
    random = np.random.default_rng(len(values))
    heatmaps[:, 1, random.integers(3, 53, len(values)), random.integers(3, 53, len(values))] = values
    keypoints, scores = found_on_gpu(heatmaps, BOXES)
    tensors = torch.from_numpy(heatmaps).cuda(), torch.from_numpy(BOXES).cuda()
    expected, expected_scores = (tensor.cpu().numpy()[:, [0, 2]] for tensor in expected_keypoints(*tensors))
    np.testing.assert_allclose(scores[:, [0, 2]], expected_scores, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(keypoints[:, [0, 2]], expected, rtol=0, atol=0.05)
    assert np.isfinite(keypoints).all()


def test_no_detections() -> None:
    keypoints, scores = found_on_gpu(np.zeros((0, 17, 56, 56), np.float32), np.zeros((0, 4), np.float32))
    assert keypoints.shape == (0, 17, 3)
    assert scores.shape == (0, 17)


def test_heatmaps_in_another_layout() -> None:
    heatmaps = random_heatmaps(len(BOXES), 4, 56, 56)
    expected, _ = found_on_gpu(heatmaps, BOXES)
    channels_last = cupy.asarray(heatmaps.transpose(0, 2, 3, 1).copy()).transpose(0, 3, 1, 2)
    keypoints, _ = heatmaps_to_keypoints(channels_last, cupy.asarray(BOXES))
    np.testing.assert_array_equal(keypoints.get(), expected)


def test_equals_the_cpu() -> None:
    heatmaps = random_heatmaps(len(BOXES), 17, 56, 56)
    expected, expected_scores = heatmaps_to_keypoints(heatmaps, BOXES)
    keypoints, scores = heatmaps_to_keypoints(cupy.asarray(heatmaps), cupy.asarray(BOXES))
    np.testing.assert_allclose(keypoints.get(), expected, rtol=0, atol=0.05)
    np.testing.assert_allclose(scores.get(), expected_scores, rtol=1e-5, atol=2e-6)
    sizes = np.array([[800, 1066, 480, 640]], np.float32)
    resized = resize_keypoints(keypoints[None], cupy.asarray(sizes))
    np.testing.assert_allclose(resized.get(), resize_keypoints(keypoints.get()[None], sizes), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_warm_up(dtype: type) -> None:
    device = Gpu(0)
    with device.active():
        warm_up(device, dtype)


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="float32 or float16, not float64"):
        heatmaps_to_keypoints(cupy.zeros((1, 1, 2, 2)), cupy.zeros((1, 4), np.float32))
