"""CUDA graphs: a computation that has already run for some input shapes is launched again as one graph."""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import cupy
import numpy as np

from rcnn_backend.devices import Gpu

logger = logging.getLogger(__name__)

MAX_GRAPHS = 64  # twice what four padded sizes with eight batch sizes each need
MAX_COUNTED = 1024  # shapes whose runs are counted: a few hundred bytes each
# The first run compiles and loads what cannot be compiled or loaded during a capture. Shapes that occur only once
# are not worth a capture.
RUNS_BEFORE_CAPTURE = 1

V = TypeVar("V")
Compute = Callable[..., Sequence[cupy.ndarray]]
Shapes = tuple[tuple[int, ...], ...]


class Graph(NamedTuple):
    """A captured computation, with the arrays that it reads and writes."""

    graph: cupy.cuda.graph.Graph
    inputs: list[cupy.ndarray]
    outputs: list[cupy.ndarray]


class GraphCache:
    """Runs ``compute``, as a CUDA graph where possible. ``compute`` must launch only on the stream of ``device`` and
    must not wait for the GPU.

    For each combination of shapes, the first RUNS_BEFORE_CAPTURE batches run without a graph, and the next one is
    captured. Beyond MAX_GRAPHS graphs, the least recently used one is dropped, and its shapes count as new. If a capture
    fails, batches of these shapes continue to run without a graph; the first failure is logged.

    Batches run one after the other, so they all use the same memory. Its size depends on the largest batch, not on the
    number of shapes. It is never freed, because graphs point into it.
    """

    def __init__(self, compute: Compute, device: Gpu) -> None:
        self._compute = compute
        self._stream = device.stream
        self._memory = cupy.cuda.MemoryPool(_allocate)
        self._inputs, self._outputs = SharedArrays(), SharedArrays()
        self._graphs: OrderedDict[Shapes, Graph] = OrderedDict()
        self._runs: OrderedDict[Shapes, int] = OrderedDict()  # runs without a graph
        self._has_failed = False
        device.has_graphs = True

    def __call__(self, *inputs: cupy.ndarray) -> list[cupy.ndarray]:
        """The outputs, which the next call overwrites."""
        shapes = tuple(array.shape for array in inputs)
        runs = self._runs.get(shapes, 0)
        graph = self._graphs.get(shapes)
        if runs == RUNS_BEFORE_CAPTURE:  # only once: after a failed capture the count goes on
            graph = self._try_capture(shapes, inputs)
        if graph is None:
            outputs = self._run(inputs)
            _remember(self._runs, shapes, runs + 1, MAX_COUNTED)
            return outputs
        self._runs.pop(shapes, None)
        _remember(self._graphs, shapes, graph, MAX_GRAPHS)
        _copy(inputs, graph.inputs)
        graph.graph.launch(self._stream)
        return graph.outputs

    def _try_capture(self, shapes: Shapes, inputs: Sequence[cupy.ndarray]) -> Graph | None:
        """The graph, or None if the capture fails."""
        try:
            return self._capture(inputs)
        except Exception as error:  # each library raises its own types
            if not self._has_failed:
                logger.warning(
                    "batches of the shapes %s cannot be captured as a CUDA graph and run without one, which is slower; "
                    "failures with other shapes are not logged",
                    shapes,
                    exc_info=error,
                )
            self._has_failed = True
            return None

    def _capture(self, inputs: Sequence[cupy.ndarray]) -> Graph:
        own = self._inputs.like(inputs)
        self._stream.begin_capture()
        try:
            outputs = self._run(own)
        except BaseException:
            # This makes the stream usable again. An error here only means that the capture has failed.
            with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
                self._stream.end_capture()
            raise
        return Graph(self._stream.end_capture(), own, outputs)

    def _run(self, inputs: Sequence[cupy.ndarray]) -> list[cupy.ndarray]:
        with cupy.cuda.using_allocator(self._memory.malloc):
            computed = self._compute(*inputs)
        outputs = self._outputs.like(computed)
        _copy(computed, outputs)
        return outputs


class SharedArrays:
    """Arrays of any shapes that share the same memory, for one batch at a time."""

    def __init__(self) -> None:
        self._memory: list[cupy.ndarray] = []

    def like(self, arrays: Sequence[cupy.ndarray]) -> list[cupy.ndarray]:
        """An array of the same layout for each of ``arrays``. Arrays returned earlier keep their memory."""
        self._memory += [cupy.empty(0, np.uint8) for _ in arrays[len(self._memory) :]]
        for index, array in enumerate(arrays):
            if self._memory[index].nbytes < array.nbytes:
                self._memory[index] = cupy.empty(array.nbytes, np.uint8)
        return [
            cupy.ndarray(array.shape, array.dtype, memory.data, strides=_strides(array))
            for array, memory in zip(arrays, self._memory, strict=True)
        ]


def _strides(array: cupy.ndarray) -> tuple[int, ...] | None:
    """The strides of an array without gaps, such as features in channels-last order; otherwise None."""
    strides: tuple[int, ...] = array.strides
    span = array.itemsize + sum(
        (side - 1) * stride for side, stride in zip(array.shape, strides, strict=True)
    )
    return strides if min(strides, default=1) > 0 and span == array.nbytes else None


def _remember(cache: OrderedDict[Shapes, V], shapes: Shapes, value: V, size: int) -> None:
    """Stores an entry as the most recently used one. Beyond ``size`` entries, the least recently used one is dropped."""
    cache[shapes] = value
    cache.move_to_end(shapes)
    if len(cache) > size:
        cache.popitem(last=False)


def _copy(sources: Iterable[cupy.ndarray], targets: Iterable[cupy.ndarray]) -> None:
    for source, target in zip(sources, targets, strict=True):
        if source.strides == target.strides and _strides(source):
            source, target = _flat(source), _flat(target)  # CuPy copies other layouts element by element
        cupy.copyto(target, source)


def _flat(array: cupy.ndarray) -> cupy.ndarray:
    """The elements [n] of an array without gaps, in the order of its memory."""
    return cupy.ndarray((array.size,), array.dtype, array.data)


def _allocate(size: int) -> cupy.cuda.MemoryPointer:
    """Allocates as CuPy does, but raises another error: on CuPy's own, its pool would free memory that the graphs use."""
    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"the GPU has no {size} bytes to work in: {error}") from error
