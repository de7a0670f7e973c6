"""The INT8 operators, computed with torch's own operators: values by hand, rounding, clamping, exact sums, tracing."""

from typing import Any

import pytest
import torch
from rcnn_backend.engines.convolution_int8 import EXACT_IN_FP32, SMALLEST, convolve_int8, describe_int8
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

INT8, FP16, FP32 = torch.int8, torch.float16, torch.float32
UNIT = [1, 1], [0, 0], [1, 1], 1  # stride, padding, dilation, groups
convolution_int8, quantize = torch.ops.rcnn.convolution_int8, torch.ops.rcnn.quantize


def int8(*values: int) -> Tensor:
    """One pixel with one channel for each value, [1, C, 1, 1]."""
    return torch.tensor(values, dtype=INT8)[None, :, None, None]


def test_by_hand() -> None:
    x = int8(100, -3)
    weight = torch.tensor([[2, 1], [-127, 127]], dtype=INT8)[:, :, None, None]  # sums 197 and -13081
    scale = torch.tensor([0.5, 2.0**-7])
    bias = torch.tensor([1.25, -3.0])

    def run(*rest: Any, relu: bool = False, dtype: torch.dtype = FP32) -> list[float]:
        found = convolution_int8(x, weight, *rest, *UNIT, relu, dtype)
        assert found.dtype == dtype
        return found.flatten().tolist()

    assert run(None, None, scale, None) == [98.5, -102.1953125]
    assert run(bias, None, scale, None) == [99.75, -105.1953125]
    assert run(bias, None, scale, None, dtype=INT8) == [100, -105]
    assert run(bias, None, scale, None, relu=True, dtype=INT8) == [100, 0]
    residual_scale = torch.tensor([0.25, 2.0])
    assert run(bias, int8(-100, 60), scale, residual_scale, dtype=INT8) == [75, 15]
    half = torch.tensor([0.5, 100.0], dtype=FP16)[None, :, None, None]
    assert run(bias, half, scale, residual_scale, dtype=FP16) == [99.875, 94.8125]


def test_halves_become_the_even_number_and_large_ones_the_limits() -> None:
    x = int8(1)
    weight = torch.tensor([1, 3, 5, -1, -3, -5, 7, -7], dtype=INT8)[:, None, None, None]
    half = torch.full((8,), 0.5)
    found = convolution_int8(x, weight, None, None, half, None, *UNIT, False, INT8)
    assert found.flatten().tolist() == [0, 2, 2, 0, -2, -2, 4, -4]
    found = convolution_int8(x, weight, None, None, 40 * half, None, *UNIT, False, INT8)
    assert found.flatten().tolist() == [20, 60, 100, -20, -60, -100, 127, -128]


@pytest.mark.parametrize("channels", [16, 128])  # summed in FP32 and in FP64
def test_sums_are_exact(channels: int) -> None:
    terms = channels * 9
    assert (terms * SMALLEST**2 > EXACT_IN_FP32) == (channels == 128)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(100, 128, (2, channels, 6, 7), generator=generator, dtype=INT8)
    weight = torch.randint(-128, -100, (4, channels, 3, 3), generator=generator, dtype=INT8)
    patches = functional.unfold(x.double(), 3).long()
    expected = (weight.flatten(1).long() @ patches).reshape(2, 4, 4, 5)
    found = convolution_int8(x, weight, None, None, torch.ones(4), None, *UNIT, False, FP32)
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [INT8, FP16, FP32])
@pytest.mark.parametrize("residual_dtype", [None, INT8, FP16])
@pytest.mark.parametrize(
    ("side", "stride", "padding", "dilation", "groups"),
    [(1, [1, 1], [0, 0], [1, 1], 1), (3, [2, 1], [1, 2], [1, 1], 2), (3, [1, 2], [2, 3], [2, 3], 4)],
)
def test_values_and_traced_shapes_are_conv2ds(
    dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
    side: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> None:
    x = torch.randint(-128, 128, (2, 4, 7, 12), dtype=INT8)
    weight = torch.randint(-127, 128, (8, 4 // groups, side, side), dtype=INT8)
    geometry = stride, padding, dilation, groups
    sums = functional.conv2d(x.double(), weight.double(), None, *geometry).float()
    bias, scale = torch.randn(8), torch.rand(8) / 50
    expected = sums * scale[:, None, None] + bias[:, None, None]
    residual = residual_scale = None
    if residual_dtype:
        residual, residual_scale = (50 * torch.randn(sums.shape)).to(residual_dtype), torch.rand(8)
        expected += residual.float() * residual_scale[:, None, None]
    expected = torch.relu(expected)
    expected = expected.round().clamp(-128, 127).to(INT8) if dtype == INT8 else expected.to(dtype)
    arguments = (x, weight, bias, residual, scale, residual_scale, *geometry, True, dtype)
    found = convolution_int8(*arguments)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    described = describe_int8(x, weight, bias, residual, *geometry, True, dtype)
    assert described.output == tuple(found.shape) and described.dtype == INT8
    assert (described.result_dtype or INT8) == dtype
    assert described.has_residual == (residual is not None)
    with FakeTensorMode() as mode:
        fake = convolution_int8(
            *(mode.from_tensor(each) if isinstance(each, Tensor) else each for each in arguments)
        )
    assert (fake.shape, fake.dtype, fake.stride()) == (found.shape, found.dtype, found.stride())
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_call_by_name_is_the_same() -> None:
    geometry = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    tensors = int8(3), int8(4), None, None, torch.ones(1), None
    assert convolve_int8(*tensors, **geometry, relu=False, dtype=INT8).item() == 12


@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_quantize_rounds_and_clamps(dtype: torch.dtype) -> None:
    values = [0.0, 0.25, 0.75, 1.25, -0.25, -0.75, 63.5, 64.0, -64.0, -64.25, -100.0, 60000.0]
    x = torch.tensor(values, dtype=dtype).reshape(1, 2, 2, 3)
    found = quantize(x, 0.5)
    assert found.dtype == INT8 and found.is_contiguous(memory_format=torch.channels_last)
    assert found.flatten().tolist() == [0, 0, 2, 2, 0, -2, 127, 127, -128, -128, -128, 127]
    with FakeTensorMode() as mode:
        fake = quantize(mode.from_tensor(x), 0.5)
    assert (fake.shape, fake.dtype, fake.stride()) == (found.shape, found.dtype, found.stride())
