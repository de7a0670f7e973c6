"""GPU RoIAlign is torchvision's MultiScaleRoIAlign on the same GPU."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
import torch  # noqa: E402
from rcnn_backend.contract.parameters import PoolParameters  # noqa: E402
from rcnn_backend.operators.gpu import kernels  # noqa: E402
from rcnn_backend.operators.gpu.roi_align import multi_scale_roi_align  # noqa: E402
from torchvision.ops import MultiScaleRoIAlign  # noqa: E402

pytestmark = pytest.mark.gpu
STRIDES = [4, 8, 16, 32]
SIDE = 512
NAN, INF = float("nan"), float("inf")
Layout = Callable[[np.ndarray], "cupy.ndarray"]


def parameters(
    strides: list[int] = STRIDES, sampling_ratio: int = 2, output_size_hw: tuple[int, int] = (7, 7)
) -> PoolParameters:
    return PoolParameters(strides, 224, 4, list(output_size_hw), sampling_ratio)


def contiguous(feature: np.ndarray) -> "cupy.ndarray":
    return cupy.asarray(feature)


def channels_last(feature: np.ndarray) -> "cupy.ndarray":
    return cupy.asarray(np.ascontiguousarray(feature.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)


def padded_rows(feature: np.ndarray) -> "cupy.ndarray":
    """A view of a larger array."""
    return cupy.asarray(np.pad(feature, ((0, 0), (1, 0), (0, 2), (3, 0)), constant_values=NAN))[
        :, 1:, :-2, 3:
    ]


def pyramid(channels: int, dtype: type, batch: int = 3, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((batch, channels, SIDE // s, SIDE // s)).astype(dtype) for s in STRIDES]


def random_proposals(counts: list[int], most: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    proposals = np.zeros((len(counts), most, 4), np.float32)
    for image, count in enumerate(counts):
        corners = np.sort(random.uniform(0, SIDE, (count, 2, 2)), axis=1).reshape(count, 4)
        proposals[image, :count] = corners * random.choice([0.05, 0.3, 1], (count, 1))
    return proposals


def torchvision_pooled(
    features: list[np.ndarray],
    proposals: np.ndarray,
    counts: list[int],
    output_size: tuple[int, int],
    ratio: int,
) -> np.ndarray:
    """torchvision's result in float32, in the padded shape."""
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size, ratio)
    pooled = pooler(
        OrderedDict(
            (str(level), torch.from_numpy(feature).cuda().float()) for level, feature in enumerate(features)
        ),
        [torch.from_numpy(boxes[:count]).cuda() for boxes, count in zip(proposals, counts, strict=True)],
        [(SIDE, SIDE)] * len(counts),
    )
    padded = np.zeros((*proposals.shape[:2], *pooled.shape[1:]), np.float32)
    padded[np.arange(proposals.shape[1]) < np.array(counts)[:, None]] = pooled.cpu().numpy()
    return padded


def pool(features: list, proposals: np.ndarray, counts: list[int], changed: PoolParameters) -> np.ndarray:
    on_gpu = cupy.asarray(proposals), cupy.asarray(np.array(counts, np.int32)[:, None])
    pooled: np.ndarray = multi_scale_roi_align(features, *on_gpu, changed).get()
    return pooled


def assert_close(pooled: np.ndarray, expected: np.ndarray) -> None:
    """Relative to the largest value: 1e-5 in float32, 2e-3 in float16."""
    tolerance = {np.float32: 1e-5, np.float16: 2e-3}[pooled.dtype.type]
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("layout", [contiguous, channels_last, padded_rows])
@pytest.mark.parametrize("channels", [256, 24, 13])
def test_equals_torchvision(dtype: type, layout: Layout, channels: int) -> None:
    features, counts = pyramid(channels, dtype), [60, 0, 7]
    proposals = random_proposals(counts, 64)
    pooled = pool([layout(feature) for feature in features], proposals, counts, parameters())
    assert pooled.dtype == dtype
    assert_close(pooled, torchvision_pooled(features, proposals, counts, (7, 7), 2))
    assert not pooled[1].any()
    assert not pooled[2, 7:].any()


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3, 4, 5, 0, -1])
@pytest.mark.parametrize("output_size", [(7, 7), (14, 14), (3, 9)])
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_other_samples_and_sizes(sampling_ratio: int, output_size: tuple[int, int], layout: Layout) -> None:
    for dtype in (np.float32, np.float16):
        features, counts = pyramid(40, dtype), [30, 20, 0]
        proposals = random_proposals(counts, 30)
        changed = parameters(sampling_ratio=sampling_ratio, output_size_hw=output_size)
        pooled = pool([layout(feature) for feature in features], proposals, counts, changed)
        assert_close(pooled, torchvision_pooled(features, proposals, counts, output_size, sampling_ratio))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_gpu_with_little_shared_memory(monkeypatch: pytest.MonkeyPatch, dtype: type) -> None:
    """Pools 14x14 from channels-last features with the kernel for contiguous features."""
    used, load = [], kernels.load

    def record(source: str, expression: str, shared_bytes: int = 0) -> "cupy.RawKernel":
        used.append(expression.split("<")[0])
        assert shared_bytes <= 64 * 1024
        return load(source, expression, shared_bytes)

    monkeypatch.setattr(kernels, "max_shared_bytes", lambda: 64 * 1024)
    monkeypatch.setattr(kernels, "load", record)
    features, counts = pyramid(40, dtype), [30, 20, 0]
    proposals = random_proposals(counts, 30)
    layout = [channels_last(feature) for feature in features]
    for size, kernel in (((14, 14), "pool_planar"), ((7, 7), "pool_channels_last")):
        pooled = pool(layout, proposals, counts, parameters(output_size_hw=size))
        assert_close(pooled, torchvision_pooled(features, proposals, counts, size, 2))
        assert used.pop() == kernel


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_boxes_at_and_over_the_border(layout: Layout) -> None:
    features = pyramid(16, np.float32, batch=1)
    edge = float(SIDE)
    boxes = np.array(
        [
            [[0, 0, edge, edge], [-30, -30, 20, 20], [edge - 9, edge - 9, edge + 40, edge + 40], [5, 5, 5, 5],
             [edge, edge, edge, edge], [-4, -4, -4, -4], [-90, 0, -50, 9], [0, 100, edge, 101], [2, 2, 2.5, 900]]
        ],
        np.float32,
    )  # fmt: skip
    pooled = pool([layout(feature) for feature in features], boxes, [9], parameters())
    assert_close(pooled, torchvision_pooled(features, boxes, [9], (7, 7), 2))


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_nan_and_inf_features(layout: Layout) -> None:
    features = pyramid(16, np.float32)
    random = np.random.default_rng(4)
    for feature in features:
        feature.ravel()[random.integers(0, feature.size, feature.size // 500)] = random.choice(
            [NAN, INF, -INF]
        )
    counts = [40, 40, 40]
    proposals = random_proposals(counts, 40)
    pooled = pool([layout(feature) for feature in features], proposals, counts, parameters())
    expected = torchvision_pooled(features, proposals, counts, (7, 7), 2)
    finite = np.isfinite(expected)
    assert 0.05 < finite.mean() < 0.999
    np.testing.assert_array_equal(np.isfinite(pooled), finite)
    assert_close(pooled[finite], expected[finite])


def test_a_ramp_pools_to_its_own_coordinates() -> None:
    # feature(y, x) = x, one level of stride 4: the bin centres of a 28 px wide box from x = 8 to 36
    # are at 2 + 0.5, 2 + 1.5, ... feature pixels; without alignment these are also the pooled values.
    ramp = np.broadcast_to(np.arange(32, dtype=np.float32), (1, 8, 32, 32)).copy()
    box = np.array([[[8, 8, 36, 36]]], np.float32)
    for layout in (contiguous, channels_last):
        for sampling_ratio in (1, 2, 0):
            changed = parameters([4], sampling_ratio)
            pooled = pool([layout(ramp)], box, [1], changed)
            expected = np.broadcast_to(np.arange(7) + 2.5, (8, 7, 7))
            np.testing.assert_allclose(pooled[0, 0], expected, atol=1e-6)


def test_levels_follow_the_fpn_paper() -> None:
    # Level l contains the number l, so the output shows from which level a square is pooled.
    sides = [1e-3, 10, 111.9, 112, 223.9, 224, 447.9, 448, 500]
    boxes = np.array([[[0, 0, side, side] for side in sides]], np.float32)
    features = [np.full((1, 8, SIDE // s, SIDE // s), level, np.float32) for level, s in enumerate(STRIDES)]
    pooled = pool([contiguous(feature) for feature in features], boxes, [len(sides)], parameters())
    np.testing.assert_array_equal(pooled[0, :, 0, 3, 3], [0, 0, 0, 1, 1, 2, 2, 3, 3])
    # mobilenet's two levels have the same stride: torchvision pools all boxes from the first
    same = [contiguous(features[0]), contiguous(features[1][:, :, :9, :9])]
    assert not pool(same, boxes, [len(sides)], parameters([32, 32])).any()


def test_no_roi_and_wild_counts() -> None:
    features = [contiguous(feature) for feature in pyramid(8, np.float16)]
    proposals = np.full((3, 5, 4), NAN, np.float32)
    assert not pool(features, proposals, [0, 0, -3], parameters()).any()
    assert pool(features, proposals, [5, 2**30, 1], parameters()).shape == (3, 5, 8, 7, 7)


def test_equals_the_cpu() -> None:
    pytest.importorskip("openvino")
    from rcnn_backend.operators.roi_align import multi_scale_roi_align as on_cpu

    features, counts = pyramid(8, np.float32), [40, 0, 7]
    proposals = random_proposals(counts, 40)
    expected = on_cpu(features, proposals, np.array(counts)[:, None], parameters())
    pooled = pool([contiguous(feature) for feature in features], proposals, counts, parameters())
    np.testing.assert_allclose(pooled, expected, atol=5e-5)


def test_bad_features_are_refused() -> None:
    features = [contiguous(feature) for feature in pyramid(8, np.float32)]
    proposals = random_proposals([1, 1, 1], 1)
    with pytest.raises(ValueError, match="3 features for the strides"):
        pool(features[:3], proposals, [1, 1, 1], parameters())
    with pytest.raises(ValueError, match="expected one type"):
        pool([*features[:3], features[3].astype(np.float16)], proposals, [1, 1, 1], parameters())
    with pytest.raises(ValueError, match="take float32 or float16, not float64"):
        pool([feature.astype(np.float64) for feature in features], proposals, [1, 1, 1], parameters())
