"""Pooling and upsampling as torch operators: values, traced shapes, and the kernel launches for them on a GPU."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from rcnn_backend.engines import feature_maps  # noqa: F401  defines the operators
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

rcnn = torch.ops.rcnn
DTYPES = [torch.float32, torch.float16]


def assert_is(found: Tensor, expected: Tensor, fake: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (fake.shape, fake.dtype) == (found.shape, found.dtype)
    assert fake.stride() == torch.empty(found.shape, memory_format=torch.channels_last).stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size_hw", [(1, 1), (7, 12), (16, 9)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [([3, 3], [2, 2], [1, 1]), ([1, 1], [2, 2], [0, 0]), ([3, 2], [1, 3], [1, 1])],
)
def test_pools_as_torch(
    dtype: torch.dtype, size_hw: tuple[int, int], kernel: list[int], stride: list[int], padding: list[int]
) -> None:
    x = torch.randn(2, 5, *size_hw).to(dtype)
    x[0, 0, 0, 0] = torch.nan
    with FakeTensorMode() as mode:
        fake = rcnn.max_pool(mode.from_tensor(x), kernel, stride, padding)
    expected = functional.max_pool2d(x, kernel, stride, padding)
    assert_is(rcnn.max_pool(x, kernel, stride, padding), expected, fake)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size_hw", [(1, 1), (14, 24), (13, 23), (5, 40), (7, 12)])
def test_upsamples_as_torch(dtype: torch.dtype, size_hw: tuple[int, int]) -> None:
    x = torch.randn(2, 5, 7, 12).to(dtype)
    with FakeTensorMode() as mode:
        fake = rcnn.upsample(mode.from_tensor(x), *size_hw)
    expected = functional.interpolate(x, size=size_hw, mode="nearest")
    assert_is(rcnn.upsample(x, *size_hw), expected, fake)
    addend = torch.randn(2, 5, *size_hw).to(dtype)
    with FakeTensorMode() as mode:
        fake = rcnn.upsample(mode.from_tensor(x), *size_hw, mode.from_tensor(addend))
    assert_is(rcnn.upsample(x, *size_hw, addend), expected + addend, fake)


@pytest.fixture
def on_gpu(load_operators: Callable[[str], ModuleType]) -> Any:
    """The GPU operators, run on the CPU."""
    module = load_operators("feature_maps_gpu")
    return SimpleNamespace(pool=module._max_pool_on_gpu, upsample=module._upsample_on_gpu)


def numbers_of(arguments: tuple[Any, ...]) -> list[float]:
    """Those after the addresses of input and result."""
    return [number.item() for number in arguments[2:]]


@pytest.mark.parametrize(
    ("channels", "dtype", "template", "parts"),
    [
        (64, torch.float16, "Half, 8", 2),  # 40 * 64 / 8 is more than 256 threads
        (64, torch.float32, "float, 4", 3),
        (12, torch.float16, "Half, 1", 2),
        (12, torch.float32, "float, 4", 1),
        (3, torch.float32, "float, 1", 1),
    ],
)
def test_a_thread_takes_16_bytes_where_the_channels_allow(
    on_gpu: Any, launched: list[Any], channels: int, dtype: torch.dtype, template: str, parts: int
) -> None:
    x = torch.zeros(2, channels, 50, 80, dtype=dtype)
    vectors = channels // int(template[-1])
    assert on_gpu.pool(x, [3, 3], [2, 2], [1, 1]).shape == (2, channels, 25, 40)
    assert on_gpu.upsample(x, 100, 40).shape == (2, channels, 100, 40)
    sizes = [50, 80, 25, 40, vectors], [50, 80, 100, 40, vectors]
    assert [(*each[:4], numbers_of(each.arguments)) for each in launched] == [
        ("feature_maps", f"max_pool<{template}, 3, 3>", (50, parts), 256, [*sizes[0], 2, 2, 1, 1]),
        ("feature_maps", f"upsample<{template}>", (200, parts), 256, [*sizes[1], 0.5, 2.0, 0]),
    ]


def test_an_addend_is_read_in_channels_last_order_and_16_bytes_at_a_time_if_aligned(
    on_gpu: Any, launched: list[Any]
) -> None:
    x = torch.zeros(1, 8, 2, 2, dtype=torch.float16)
    aligned = torch.zeros(1, 8, 4, 4, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    shifted = torch.zeros(8 * 16 + 1, dtype=torch.float16)[1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    for addend in (aligned, shifted):
        on_gpu.upsample(x, 4, 4, addend)
    assert [(each.source, each.expression, each.threads) for each in launched] == [
        ("feature_maps", "upsample<Half, 8>", 256),
        ("feature_maps", "upsample<Half, 1>", 256),
    ]
    addresses = [numbers_of(each.arguments)[-1] for each in launched]
    assert addresses == [aligned.data_ptr(), shifted.data_ptr()]


def test_torch_does_what_the_kernels_do_not_take(on_gpu: Any, launched: list[Any]) -> None:
    x = torch.randn(1, 3, 9, 9)
    for tensor, kernel in ((x, [5, 5]), (x.double(), [3, 3])):
        found = on_gpu.pool(tensor, kernel, [1, 1], [0, 0])
        torch.testing.assert_close(found, functional.max_pool2d(tensor, kernel, 1))
    torch.testing.assert_close(
        on_gpu.upsample(x.double(), 3, 3), functional.interpolate(x.double(), size=(3, 3))
    )
    assert on_gpu.upsample(x[:0], 3, 3).shape == (0, 3, 3, 3)
    for addend in (torch.randn(1, 3, 1, 3), torch.randn(1, 3, 3, 3).double()):
        expected = functional.interpolate(x, size=(3, 3)) + addend
        torch.testing.assert_close(on_gpu.upsample(x, 3, 3, addend), expected)
    assert launched == []
