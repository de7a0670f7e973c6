"""The choice and decoding of the best anchors as one torch operator, and the kernel launches for it on a GPU."""

import math
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from rcnn_backend.engines.best_boxes import best_boxes, choose_boxes
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models.detection._utils import BoxCoder

CLIP = math.log(1000 / 16)
SIZES = [(10, 12), (5, 6), (3, 3), (1, 1)]
LEVEL = struct.Struct("QQQiiiiiiiiii")


def random_call(
    batch: int = 2,
    num_anchors: int = 3,
    dtype: torch.dtype = torch.float32,
    top_n: int = 40,
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
) -> tuple[Any, ...]:
    """The operator's arguments, for a picture of 80x96."""
    objectness = [torch.randn(batch, num_anchors, *size).to(dtype) for size in SIZES]
    deltas = [torch.randn(batch, 4 * num_anchors, *size).mul(2).to(dtype) for size in SIZES]
    cells = [torch.randn(num_anchors, 4) * 30 for _ in SIZES]
    return objectness, deltas, cells, 80, 96, top_n, list(weights), CLIP


def test_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 2.0], [-1.0, 1.0]]]])  # one anchor per cell
    deltas = torch.zeros(1, 4, 2, 2)
    deltas[0, :, 0, 1] = torch.tensor([1.0, 0.5, math.log(2), 100.0])
    cells = torch.tensor([[-4.0, -2.0, 4.0, 2.0]])
    found = torch.ops.rcnn.best_boxes(
        [logits], [deltas], [cells], 32, 64, 2, [1.0, 2.0, 1.0, 1.0], math.log(3)
    )
    expected = [
        # the cell at (32, 0): its centre moves by a width and a quarter of a height; it gets twice as wide, three times as high
        [1 / (1 + math.exp(-2)), 40 - 8, 1 - 6, 40 + 8, 1 + 6, 0],
        [1 / (1 + math.exp(-1)), 32 - 4, 16 - 2, 32 + 4, 16 + 2, 0],
    ]
    torch.testing.assert_close(found, torch.tensor([expected]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
@pytest.mark.parametrize("top_n", [1, 40, 1000])
def test_equals_torchvisions_decoding(dtype: torch.dtype, weights: Any, top_n: int) -> None:
    call = random_call(3, 2, dtype, top_n, weights)
    found = torch.ops.rcnn.best_boxes(*call)
    expected = choose_boxes(*call[:-2], BoxCoder(weights, CLIP).decode_single)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with FakeTensorMode() as mode:
        lists = [[mode.from_tensor(tensor) for tensor in tensors] for tensors in call[:3]]
        fake = torch.ops.rcnn.best_boxes(*lists, *call[3:])
    assert (fake.shape, fake.dtype, fake.stride()) == (found.shape, found.dtype, found.stride())


@pytest.fixture
def run(load_operators: Callable[[str], ModuleType]) -> Callable[..., Tensor]:
    """The GPU operator, run on the CPU."""
    operator: Callable[..., Tensor] = load_operators("best_boxes_gpu")._best_boxes_on_gpu
    return operator


def test_three_launches_for_all_levels_and_images(run: Callable[..., Tensor], launched: list[Any]) -> None:
    found = run(*random_call(dtype=torch.float16, weights=(10.0, 10.0, 5.0, 5.0)))
    assert found.shape == (2, 40 + 40 + 27 + 3, 6)
    assert [each[:4] for each in launched] == [
        ("best_boxes", "count_logits<Half>", (4, 2), 256),
        ("best_boxes", "gather_logits<Half>", (4, 2), 256),
        ("best_boxes", "decode_best<Half>", (4, 2), 1024),
    ]
    levels, decoding, *_, rpn_boxes = launched[-1].arguments
    assert rpn_boxes == found.data_ptr()
    table = levels.tobytes()
    assert [LEVEL.unpack_from(table, 64 * level)[3:] for level in range(4)] == [
        # anchors, anchors per cell, cells per row, stride y and x, kept, first tile, row and word
        (360, 3, 12, 8, 8, 40, 0, 0, 0, 0),
        (90, 3, 6, 16, 16, 40, 1, 40, 360, 0),
        (27, 3, 3, 26, 32, 27, 2, 80, 450, 0),
        (3, 3, 1, 80, 96, 3, 3, 107, 477, 0),
    ]
    assert struct.unpack_from("iiii", table, 8 * 64) == (4, 110, 480, 0)
    assert struct.unpack("5f", decoding.tobytes()) == pytest.approx((0.1, 0.1, 0.2, 0.2, CLIP))


def test_torch_does_what_the_kernels_do_not_take(run: Callable[..., Tensor], launched: list[Any]) -> None:
    objectness, deltas, cells, *rest = random_call()
    many = [[*each, *each, *each] for each in (objectness, deltas, cells)]
    mixed = [objectness[0].half(), *objectness[1:]]
    calls: list[tuple[Any, ...]] = [
        (*many, *rest),  # twelve levels
        (mixed, deltas, cells, *rest),
        random_call(dtype=torch.bfloat16),
        random_call(top_n=5000),
    ]
    for call in calls:
        torch.testing.assert_close(run(*call), best_boxes(*call), rtol=0, atol=0)
    assert launched == []
