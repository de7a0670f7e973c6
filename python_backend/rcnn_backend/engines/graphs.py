"""CUDA graphs: what ran once for some shapes of inputs runs again as a single launch."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import cupy
import numpy as np

from rcnn_backend.devices import Gpu

MAX_SHAPES = 32

Compute = Callable[..., Sequence[cupy.ndarray]]
Shapes = tuple[tuple[int, ...], ...]


class Graph(NamedTuple):
    """A captured computation, with the arrays that it reads and those that it writes."""

    graph: cupy.cuda.graph.Graph
    inputs: list[cupy.ndarray]
    outputs: list[cupy.ndarray]


class GraphCache:
    """``compute``, which launches on the stream of ``device`` only and waits for nothing.

    The first batch of some shapes runs as ever, which compiles and loads what it needs; the second
    is captured. Of more than MAX_SHAPES shapes, the one unused for longest is forgotten.

    One batch runs after the other, so all of them work in the same memory, which grows with the largest
    batch and not with the number of shapes. It is never given back: graphs point into it.
    """

    def __init__(self, compute: Compute, device: Gpu) -> None:
        self._compute = compute
        self._stream = device.stream
        self._memory = cupy.cuda.MemoryPool(_allocate)
        self._inputs, self._outputs = SharedArrays(), SharedArrays()
        self._graphs: OrderedDict[Shapes, Graph | None] = OrderedDict()  # None: ran once
        device.has_graphs = True

    def __call__(self, *inputs: cupy.ndarray) -> list[cupy.ndarray]:
        """The outputs, which the next call overwrites."""
        shapes = tuple(array.shape for array in inputs)
        if shapes not in self._graphs:
            outputs = self._run(inputs)
            self._remember(shapes, None)
            return outputs
        graph = self._graphs[shapes] or self._capture(inputs)
        self._remember(shapes, graph)
        _copy(inputs, graph.inputs)
        graph.graph.launch(self._stream)
        return graph.outputs

    def _remember(self, shapes: Shapes, graph: Graph | None) -> None:
        self._graphs[shapes] = graph
        self._graphs.move_to_end(shapes)
        if len(self._graphs) > MAX_SHAPES:
            self._graphs.popitem(last=False)

    def _capture(self, inputs: Sequence[cupy.ndarray]) -> Graph:
        own = self._inputs.like(inputs)
        self._stream.begin_capture()
        try:
            outputs = self._run(own)
        finally:
            graph = self._stream.end_capture()
        return Graph(graph, own, outputs)

    def _run(self, inputs: Sequence[cupy.ndarray]) -> list[cupy.ndarray]:
        with cupy.cuda.using_allocator(self._memory.malloc):
            computed = self._compute(*inputs)
        outputs = self._outputs.like(computed)
        _copy(computed, outputs)
        return outputs


class SharedArrays:
    """Arrays of any shapes over the same memory, for one batch at a time."""

    def __init__(self) -> None:
        self._memory: list[cupy.ndarray] = []

    def like(self, arrays: Sequence[cupy.ndarray]) -> list[cupy.ndarray]:
        """One for each; what was given out before keeps its memory."""
        self._memory += [cupy.empty(0, np.uint8) for _ in arrays[len(self._memory) :]]
        for index, array in enumerate(arrays):
            if self._memory[index].nbytes < array.nbytes:
                self._memory[index] = cupy.empty(array.nbytes, np.uint8)
        return [
            cupy.ndarray(array.shape, array.dtype, memory.data)
            for array, memory in zip(arrays, self._memory, strict=True)
        ]


def _copy(sources: Iterable[cupy.ndarray], targets: Iterable[cupy.ndarray]) -> None:
    for source, target in zip(sources, targets, strict=True):
        cupy.copyto(target, source)


def _allocate(size: int) -> cupy.cuda.MemoryPointer:
    """As a pool does by itself; but to CuPy's own error it answers by freeing what the graphs work in."""
    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"the GPU has no {size} bytes to work in: {error}") from error
