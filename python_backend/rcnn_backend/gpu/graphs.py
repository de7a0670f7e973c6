"""CUDA graphs: what ran once for some shapes of inputs runs again as a single launch."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cupy
import numpy as np

from rcnn_backend.devices import Gpu

logger = logging.getLogger(__name__)

MAX_SHAPES = 32

Compute = Callable[..., Sequence[cupy.ndarray]]
Shapes = tuple[tuple[int, ...], ...]


class Graph(NamedTuple):
    """A captured computation, with the arrays that it reads and those that it writes."""

    graph: cupy.cuda.graph.Graph
    inputs: list[cupy.ndarray]
    outputs: Sequence[cupy.ndarray]


class GraphCache:
    """``compute``, which launches on the stream of ``device`` only and waits for nothing.

    The first batch of some shapes runs as ever, which compiles and loads what it needs; the second
    is captured, if the GPU has the memory. Of more than MAX_SHAPES shapes, the one unused for longest is
    forgotten. The graphs run one after the other, so they share the memory of their inputs and that
    in which they work.
    """

    def __init__(self, compute: Compute, device: Gpu) -> None:
        self._compute = compute
        self._stream = device.stream
        self._memory = cupy.cuda.MemoryPool(_allocate)
        self._inputs: list[cupy.ndarray] = []  # bytes
        self._graphs: OrderedDict[Shapes, Graph | None] = OrderedDict()  # None: ran once

    def __call__(self, *inputs: cupy.ndarray) -> Sequence[cupy.ndarray]:
        """The outputs, which the next call with these shapes overwrites."""
        shapes = tuple(array.shape for array in inputs)
        if shapes not in self._graphs:
            self._remember(shapes, None)
            return self._compute(*inputs)
        try:
            graph = self._graphs[shapes] or self._capture(inputs)
        except Exception as error:  # of many kinds, by what was out of memory
            logger.warning("No CUDA graph of %s, which is slower: %s", shapes, error)
            del self._graphs[shapes]
            return self._compute(*inputs)
        self._remember(shapes, graph)
        for own, given in zip(graph.inputs, inputs, strict=True):
            cupy.copyto(own, given)
        graph.graph.launch(self._stream)
        return graph.outputs

    def _remember(self, shapes: Shapes, graph: Graph | None) -> None:
        self._graphs[shapes] = graph
        self._graphs.move_to_end(shapes)
        if len(self._graphs) > MAX_SHAPES:
            self._graphs.popitem(last=False)

    def _capture(self, inputs: Sequence[cupy.ndarray]) -> Graph:
        own = self._own(inputs)
        with cupy.cuda.using_allocator(self._memory.malloc):
            self._stream.begin_capture()
            try:
                outputs = self._compute(*own)
            finally:
                graph = self._stream.end_capture()
        return Graph(graph, own, outputs)

    def _own(self, inputs: Sequence[cupy.ndarray]) -> list[cupy.ndarray]:
        """Arrays like the inputs in memory that stays; that of the earlier graphs, if it is large enough."""
        self._inputs += [cupy.empty(0, np.uint8)] * (len(inputs) - len(self._inputs))
        for index, array in enumerate(inputs):
            if self._inputs[index].nbytes < array.nbytes:
                self._inputs[index] = cupy.empty(array.nbytes, np.uint8)
        return [
            cupy.ndarray(array.shape, array.dtype, memory.data)
            for array, memory in zip(inputs, self._inputs, strict=True)
        ]


def _allocate(size: int) -> cupy.cuda.MemoryPointer:
    """As a pool does by itself; but to CuPy's own error it answers by freeing what the graphs work in."""
    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"{size} bytes for a CUDA graph: {error}") from error
