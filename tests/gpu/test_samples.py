"""The samples that a GPU takes equal those that the CPU takes."""

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
from rcnn_backend.steps.lost_tensors import Arrived, Sent, find_lost, take_samples  # noqa: E402

pytestmark = pytest.mark.gpu
RANDOM = np.random.default_rng(5)


def make_tensors() -> list[np.ndarray]:
    """Every type, last axes of one to nine elements, and one that is not contiguous."""
    shapes = [(3, 6), (3, 1), (3, 5, 2), (3, 4, 8, 9), (3, 7, 4, 3, 5)]
    plain = [RANDOM.uniform(-9, 9, shape).astype(np.float32) for shape in shapes]
    halves = [array.astype(np.float16) for array in plain]
    plain[3][1, 2, 4, 4] = -77
    large = RANDOM.normal(0, 1, (3, 64, 50, 40)).astype(np.float32)
    odd = RANDOM.normal(0, 1, (3, 7, 11, 13)).astype(np.float16)
    odd[2, 3, 5, 3] = np.nan
    channels_last = RANDOM.uniform(0, 1, (3, 5, 6, 8)).astype(np.float32).transpose(0, 3, 1, 2)
    counts = np.array([[3], [0], [1000]], np.int32)
    return [*plain, *halves, counts, channels_last, plain[0][:, 1:3], large, large.astype(np.float16), odd]


def test_the_gpu_takes_the_same() -> None:
    tensors = make_tensors()
    expected = take_samples(tensors)
    found = take_samples([cupy.asarray(tensor) for tensor in tensors])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.get(), expected)


def test_strides_are_followed() -> None:
    whole = cupy.asarray(RANDOM.uniform(0, 1, (4, 6, 8)).astype(np.float32))
    views = [whole.transpose(0, 2, 1), whole[::2].repeat(2, axis=0)[:, 1:, ::3], whole[:, :, 5:]]
    expected = take_samples([view.get() for view in views])
    np.testing.assert_array_equal(take_samples(views).get(), expected)


def test_a_lost_tensor_is_named() -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        boxes = cupy.asarray(RANDOM.uniform(0, 1, (2, 9, 6)).astype(np.float32))
        tensors = {"boxes": boxes, "all_samples": take_samples([boxes, boxes.astype(np.float16), boxes])}
        boxes[1] = 0
        arrived = Arrived(tensors)
        stream.synchronize()
    found = arrived.by_name()
    assert found["all_samples"].shape == (2, 15)
    assert find_lost(iter([Sent("boxes", found["boxes"], found["all_samples"][:, :5])]), 2) == [[], ["boxes"]]


def test_what_it_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="float64: expected float32"):
        take_samples([cupy.zeros((1, 2), np.float64)])
    with pytest.raises(ValueError, match="33 tensors: expected at most 32"):
        take_samples([cupy.zeros((1, 2), np.float32)] * 33)
