"""Which batches run as CUDA graphs and which without; NumPy and a stream that records replace CuPy."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest


class CudaError(RuntimeError):
    """The exception that CuPy raises for a CUDA error."""


class Stream:
    """Runs launched work immediately, or records it for a graph."""

    def __init__(self) -> None:
        self.recorded: list[Callable[[], None]] | None = None
        self.is_invalid = False

    def launch(self, work: Callable[[], None]) -> None:
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)

    def begin_capture(self) -> None:
        assert self.recorded is None, "a capture has not ended"
        self.recorded, self.is_invalid = [], False

    def end_capture(self) -> SimpleNamespace:
        works, self.recorded = self.recorded or [], None
        if self.is_invalid:
            raise CudaError("cudaErrorStreamCaptureInvalidated")
        return SimpleNamespace(launch=lambda stream: [stream.launch(work) for work in works])


class Doubling:
    """Doubles an array. Its capture fails for lengths in ``refused``, and makes the stream invalid if ``is_heard``."""

    def __init__(self, stream: Stream, refused: Sequence[int] = (), is_heard: bool = True) -> None:
        self.stream, self.refused, self.is_heard = stream, refused, is_heard
        self.runs: list[int] = []
        self.captures: list[int] = []

    def __call__(self, array: np.ndarray) -> list[np.ndarray]:
        is_capture = self.stream.recorded is not None
        (self.captures if is_capture else self.runs).append(len(array))
        if is_capture and len(array) in self.refused:
            self.stream.is_invalid = self.is_heard
            raise ValueError(f"no capture of {len(array)}")
        result = np.empty_like(array)
        self.stream.launch(lambda: np.multiply(array, 2, out=result))
        return [result]


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def graphs(load_with_fakes: Callable[[str, dict[str, Any]], ModuleType], stream: Stream) -> ModuleType:
    cuda = SimpleNamespace(
        graph=SimpleNamespace(Graph=object),
        runtime=SimpleNamespace(CUDARuntimeError=CudaError),
        MemoryPool=lambda _allocate: SimpleNamespace(malloc=None),
        MemoryPointer=object,
        using_allocator=lambda _malloc: nullcontext(),
    )
    cupy = SimpleNamespace(
        ndarray=np.ndarray,
        empty=np.empty,
        copyto=lambda target, source: stream.launch(lambda: np.copyto(target, source)),
        cuda=cuda,
    )
    return load_with_fakes("rcnn_backend.engines.graphs", {"cupy": cupy})


def feed(cache: Any, *lengths: int) -> None:
    """Checks the answers to batches of these lengths, each with different numbers."""
    for number, length in enumerate(lengths):
        array = np.arange(length, dtype=np.float32) + number
        np.testing.assert_array_equal(cache(array)[0], 2 * array)


def test_the_second_batch_is_captured(graphs: ModuleType, stream: Stream) -> None:
    compute = Doubling(stream)
    device = SimpleNamespace(stream=stream, has_graphs=False)
    feed(graphs.GraphCache(compute, device), 3, 5, 3, 3, 5, 3)
    assert (compute.runs, compute.captures) == ([3, 5], [3, 5])
    assert device.has_graphs


def test_shapes_seen_once_push_out_no_graph(graphs: ModuleType, stream: Stream) -> None:
    compute = Doubling(stream)
    cache = graphs.GraphCache(compute, SimpleNamespace(stream=stream))
    feed(cache, 3, 3, *range(10, 110), 3, 3)
    assert compute.captures == [3]
    assert 3 not in compute.runs[1:]


def test_four_padded_sizes_with_eight_batches_leave_room(graphs: ModuleType, stream: Stream) -> None:
    compute = Doubling(stream)
    cache = graphs.GraphCache(compute, SimpleNamespace(stream=stream))
    warmed = [length for length in range(1, 33) for _ in range(2)]
    feed(cache, *warmed, 40, 40, 41, 41, *range(1, 33))
    assert compute.captures == compute.runs == [*range(1, 33), 40, 41]


def test_the_graph_unused_for_longest_is_forgotten(
    graphs: ModuleType, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    compute = Doubling(stream)
    feed(graphs.GraphCache(compute, SimpleNamespace(stream=stream)), 1, 1, 2, 2, 1, 3, 3, 1, 2, 2)
    assert compute.captures == [1, 2, 3, 2]  # the graph of 2 is dropped for that of 3, and 2 counts as new
    assert compute.runs == [1, 2, 3, 2]


def test_the_runs_of_few_shapes_are_counted(
    graphs: ModuleType, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_COUNTED", 4)
    cache = graphs.GraphCache(Doubling(stream), SimpleNamespace(stream=stream))
    feed(cache, *range(1, 50))
    assert len(cache._runs) == 4


@pytest.mark.parametrize("is_heard", [True, False])
def test_a_failed_capture_leaves_its_shape_call_by_call(
    graphs: ModuleType, stream: Stream, caplog: pytest.LogCaptureFixture, is_heard: bool
) -> None:
    """The capture is tried once, the first failure is logged with its cause, and other shapes get graphs."""
    compute = Doubling(stream, refused=[3, 4], is_heard=is_heard)
    cache = graphs.GraphCache(compute, SimpleNamespace(stream=stream))
    with caplog.at_level(logging.WARNING):
        feed(cache, 5, 5, 3, 3, 3, 4, 4, 5, 6, 6, 6, 3, 4)
    assert compute.captures == [5, 3, 4, 6]
    assert compute.runs == [5, 3, 3, 3, 4, 4, 6, 3, 4]
    (record,) = caplog.records
    assert "((3,),)" in record.getMessage()
    assert record.exc_info
    assert str(record.exc_info[1]) == "no capture of 3"
    assert stream.recorded is None
