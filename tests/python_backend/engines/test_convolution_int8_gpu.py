"""The kernel launches for INT8 convolutions on a GPU."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import rcnn_backend
import torch
from rcnn_backend.engines.convolution import Convolution
from rcnn_backend.engines.convolution_int8 import describe_int8
from torch import Tensor

SOURCE = Path(rcnn_backend.__file__).parent / "operators/gpu/cuda/convolution_int8.cu"
GEOMETRY = (2, 1), (1, 0), (1, 2), 1
CPU = torch.device("cpu")


@pytest.fixture
def module(load_operators: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    return load_operators("convolution_int8_gpu")


def describe(
    batch: int = 2, channels: int = 32, kernels: int = 160
) -> tuple[Convolution, tuple[Tensor | None, ...]]:
    """A convolution with a residual in FP16, and its tensors."""
    x = torch.zeros(batch, channels, 40, 30, dtype=torch.int8)
    weight = torch.zeros(kernels, channels, 3, 3, dtype=torch.int8)
    scale = torch.zeros(kernels)
    size = describe_int8(x, weight, None, None, *GEOMETRY, True, torch.int8).output
    residual = torch.zeros(size, dtype=torch.float16)
    described = describe_int8(x, weight, None, residual, *GEOMETRY, True, torch.int8)
    return described, (x, weight, None, residual, scale, scale.clone())


def test_one_launch_for_each_size_of_a_block(module: ModuleType, launched: list[Any]) -> None:
    convolution, tensors = describe()
    x, weight, _, residual, scale, residual_scale = tensors
    assert convolution.output == (2, 160, 20, 26)
    results = [make()(*tensors) for _, make in module.int8_candidates(convolution, CPU)]
    assert [each[1:4] for each in launched] == [
        ("convolution_int8<256, 128>", (5 * 2,), 512),
        ("convolution_int8<128, 128>", (9 * 2,), 256),
        ("convolution_int8<128, 64>", (9 * 3,), 256),
        ("convolution_int8<64, 128>", (17 * 2,), 128),
        ("convolution_int8<64, 64>", (17 * 3,), 128),
    ]
    # Either the steps of the operands or the sums of a block decide.
    assert [each.shared_bytes for each in launched] == [139264, 69632, 49152, 49152, 32768]
    for launch, result in zip(launched, results, strict=True):
        assert launch.source == "convolution_int8"
        assert (result.shape, result.dtype) == (convolution.output, torch.int8)
        assert result.is_contiguous(memory_format=torch.channels_last)
        *addresses, geometry = launch.arguments
        given = (x, weight, scale, None, residual, residual_scale, result)
        assert addresses == [0 if each is None else each.data_ptr() for each in given]
        assert struct.unpack("18i", geometry.tobytes()) == (
            *(2, 40, 30, 32),  # batch, height, width, channels
            *(20, 26, 160),  # height and width of the result, kernels
            *(3, 3, 2, 1, 1, 0, 1, 2),  # window, stride, padding, dilation
            *(2, 1, 1),  # FP16 residual, INT8 result, ReLU
        )


def test_a_tensor_that_is_not_aligned_is_copied(module: ModuleType, launched: list[Any]) -> None:
    convolution, (x, weight, _, residual, scale, residual_scale) = describe()
    bias = torch.zeros(161)[1:]
    assert bias.data_ptr() % 16
    _, make = next(module.int8_candidates(convolution, CPU))
    make()(x, weight, bias, residual, scale, residual_scale)
    assert int(launched[0].arguments[3]) % 16 == 0


def test_an_empty_batch_needs_no_launch(module: ModuleType, launched: list[Any]) -> None:
    convolution, tensors = describe(batch=0)
    _, make = next(module.int8_candidates(convolution, CPU))
    assert make()(*tensors).shape == (0, 160, 20, 26)
    assert launched == []


def test_the_kernel_does_not_take_every_convolution(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    convolution, _ = describe()
    refused = [
        describe(channels=24)[0],
        describe(kernels=24)[0],
        convolution._replace(groups=2),
        convolution._replace(dtype=torch.float16),
        convolution._replace(x=(1, 32, 1 << 13, 1 << 12)),
    ]
    for each in refused:
        assert list(module.int8_candidates(each, CPU)) == []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert list(module.int8_candidates(convolution, CPU)) == []


def test_the_constants_are_those_of_the_kernel(module: ModuleType) -> None:
    constants = dict(re.findall(r"constexpr int (\w+) = (\d+);", SOURCE.read_text()))
    for name in ("STAGES", "DEPTH", "PADDING"):
        assert int(constants[name]) == getattr(module, name)
