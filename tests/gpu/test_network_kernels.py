"""The operators of --engine cudnn other than convolutions, on a GPU: bit-identical to torch's on the same GPU."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

pytest.importorskip("cupy")
import torch
from rcnn_backend.engines import (
    best_boxes_gpu,
    feature_maps_gpu,
    torch_kernels,
)
from rcnn_backend.engines.best_boxes import best_boxes, choose_boxes
from rcnn_backend.engines.feature_maps import max_pool, upsample
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
DTYPES = [torch.float16, torch.float32]
KINDS = ["random", "few values", "equal", "infinite", "not a number", "zeros"]
PYRAMID = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
SMALL = [(40, 56), (20, 28), (10, 14), (5, 7), (1, 1)]
CLIP = BoxCoder((1, 1, 1, 1)).bbox_xform_clip


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were launched."""
    names: list[str] = []

    def launch(source: str, expression: str, *others: Any) -> None:
        names.append(expression)
        torch_kernels.launch(source, expression, *others)

    for module in (best_boxes_gpu, feature_maps_gpu):
        monkeypatch.setattr(module, "launch", launch)
    return names


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    numbers = ~found.isnan()
    assert torch.equal(found.signbit()[numbers], expected.signbit()[numbers])


def run_eager_and_captured(run: Callable[[], Tensor], inputs: Sequence[Tensor], expected: Tensor) -> None:
    """Checks the result of a call, and of a CUDA graph of it whose inputs are filled later."""
    with torch.inference_mode():
        assert_same(run(), expected)
        values = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = run()
        for tensor in inputs:
            tensor.zero_()
        graph.replay()
        for tensor, value in zip(inputs, values, strict=True):
            tensor.copy_(value)
        for _ in range(2):
            graph.replay()
            assert_same(found, expected)


def random_values(kind: str, *shape: int) -> Tensor:
    values = torch.randn(shape, device=CUDA)
    chosen = torch.rand(shape, device=CUDA)
    if kind == "few values":
        return values.mul(4).round() / 4 + 0.0
    if kind == "equal":
        return torch.full_like(values, 0.25)
    if kind == "infinite":
        return values.where(chosen > 0.6, -torch.inf).where(chosen > 0.01, torch.inf)
    if kind == "not a number":
        return values.where(chosen > 0.02, torch.nan)
    if kind == "zeros":
        return torch.zeros_like(values).where(chosen > 0.5, -0.0)
    return values


@pytest.fixture(params=["first", "last"])
def channels(request: pytest.FixtureRequest) -> torch.memory_format:
    return torch.channels_last if request.param == "last" else torch.contiguous_format


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 64, 80, 112), (1, 12, 13, 21), (3, 5, 7, 1), (1, 1, 1, 1)])
def test_max_pool(
    launched: list[str],
    channels: torch.memory_format,
    dtype: torch.dtype,
    kind: str,
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    x = random_values(kind, *shape).to(dtype).contiguous(memory_format=channels)
    for geometry in (([3, 3], [2, 2], [1, 1]), ([1, 1], [2, 2], [0, 0]), ([2, 3], [1, 2], [1, 1])):
        run = functools.partial(torch.ops.rcnn.max_pool, x, *geometry)
        run_eager_and_captured(run, [x], max_pool(x.contiguous(), *geometry))
    assert len(launched) == 3 * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 64, 25, 42), (1, 12, 13, 21), (3, 5, 7, 1)])
def test_upsample(
    launched: list[str], channels: torch.memory_format, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, device=CUDA).to(dtype).contiguous(memory_format=channels)
    height, width = shape[2:]
    sizes = [(2 * height, 2 * width), (2 * height - 1, 2 * width - 1), (height, width), (1, 200), (31, 3)]
    for size in sizes:
        run = functools.partial(torch.ops.rcnn.upsample, x, *size)
        run_eager_and_captured(run, [x], upsample(x.contiguous(), *size))
        addend = torch.randn(*shape[:2], *size, device=CUDA).to(dtype).contiguous(memory_format=channels)
        run = functools.partial(torch.ops.rcnn.upsample, x, *size, addend)
        run_eager_and_captured(run, [x, addend], upsample(x.contiguous(), *size, addend))
    assert len(launched) == 4 * len(sizes)


def test_every_index_of_an_upsampling_is_torchs() -> None:
    for size in (1, 2, 3, 7, 13, 42, 83, 168, 335):
        x = torch.arange(size, device=CUDA, dtype=torch.float32).reshape(1, 1, 1, size)
        for larger in (1, 2, 3, size, 2 * size - 1, 2 * size, 2 * size + 1, 1000, 1344):
            assert_same(torch.ops.rcnn.upsample(x, 1, larger), upsample(x, 1, larger))


def random_call(
    kind: str,
    dtype: torch.dtype,
    batch: int,
    sizes: Sequence[tuple[int, int]],
    num_anchors: int = 3,
    top_n: int = 1000,
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
) -> tuple[Any, ...]:
    """The arguments of best_boxes, for a picture of 800x1344."""

    def head_output(values: Tensor) -> Tensor:
        return values.to(dtype).contiguous(memory_format=torch.channels_last)

    objectness = [head_output(random_values(kind, batch, num_anchors, *size)) for size in sizes]
    deltas = [head_output(random_values("random", batch, 4 * num_anchors, *size) * 2) for size in sizes]
    cells = [torch.randn(num_anchors, 4, device=CUDA) * 100 for _ in sizes]
    return objectness, deltas, cells, 800, 1344, top_n, list(weights), CLIP


def choose_by_stable_sort(monkeypatch: pytest.MonkeyPatch, call: tuple[Any, ...]) -> Tensor:
    """The operator computed with torch's own operators on this GPU; among equal logits, the lower anchor comes first."""

    def topk(logits: Tensor, kept: int, dim: int) -> tuple[Tensor, Tensor]:
        values, order = torch.sort(logits + 0.0, dim=dim, descending=True, stable=True)  # no -0
        return values[:, :kept], order[:, :kept]

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "topk", topk)
        return best_boxes(*call)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("batch", "sizes", "more"),
    [
        (2, PYRAMID, {}),
        (3, SMALL, {"weights": (10.0, 10.0, 5.0, 5.0)}),
        (1, SMALL[:1], {"num_anchors": 1, "top_n": 17}),
        (2, [(5, 7)] * 8, {"num_anchors": 2, "top_n": 4096}),
        (1, PYRAMID[:2], {"top_n": 4096}),
        (1, [(1, 1)], {"num_anchors": 1, "top_n": 1}),
    ],
    ids=["pyramid", "small", "one anchor", "eight levels", "4096", "one"],
)
def test_best_boxes(
    monkeypatch: pytest.MonkeyPatch,
    launched: list[str],
    dtype: torch.dtype,
    kind: str,
    batch: int,
    sizes: list[tuple[int, int]],
    more: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    call = random_call(kind, dtype, batch, sizes, **more)
    expected = choose_by_stable_sort(monkeypatch, call)
    run_eager_and_captured(
        functools.partial(torch.ops.rcnn.best_boxes, *call), [*call[0], *call[1]], expected
    )
    assert len(launched) == 3 * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["random", "few values", "equal"])
@pytest.mark.parametrize("batch", [1, 8])
def test_best_boxes_are_those_of_torchs_topk(dtype: torch.dtype, kind: str, batch: int) -> None:
    """And those of torchvision's decoding, which the program used before it had the operator. Ties keep their order."""
    torch.manual_seed(0)
    call = random_call(kind, dtype, batch, PYRAMID)
    expected = choose_boxes(*call[:-2], BoxCoder((1.0, 1.0, 1.0, 1.0), CLIP).decode_single)
    assert_same(torch.ops.rcnn.best_boxes(*call), expected)


def test_torch_does_what_the_kernels_do_not_take(launched: list[str]) -> None:
    call = random_call("random", torch.float16, 1, SMALL, top_n=5000)
    assert_same(torch.ops.rcnn.best_boxes(*call), best_boxes(*call))
    x = torch.randn(1, 4, 9, 9, device=CUDA)
    geometry = [5, 5], [1, 1], [2, 2]
    assert_same(torch.ops.rcnn.max_pool(x, *geometry), max_pool(x, *geometry))
    assert_same(torch.ops.rcnn.upsample(x.double(), 20, 20), upsample(x.double(), 20, 20))
    assert launched == []
