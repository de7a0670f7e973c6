"""CUDA graphs: what ran once for some shapes of inputs runs again as a single launch."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cupy

from rcnn_backend.devices import Gpu

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
    is captured. Of more than MAX_SHAPES shapes, the one unused for longest is forgotten. The graphs
    run one after the other, so they share their working memory.
    """

    def __init__(self, compute: Compute, device: Gpu) -> None:
        self._compute = compute
        self._stream = device.stream
        self._memory = cupy.cuda.MemoryPool()
        self._graphs: OrderedDict[Shapes, Graph | None] = OrderedDict()  # None: ran once

    def __call__(self, *inputs: cupy.ndarray) -> Sequence[cupy.ndarray]:
        """The outputs, which the next call with these shapes overwrites."""
        shapes = tuple(array.shape for array in inputs)
        if shapes not in self._graphs:
            self._remember(shapes, None)
            return self._compute(*inputs)
        graph = self._graphs[shapes] or self._capture(inputs)
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
        with cupy.cuda.using_allocator(self._memory.malloc):
            own = [cupy.empty_like(array) for array in inputs]
            self._stream.begin_capture()
            try:
                outputs = self._compute(*own)
            finally:
                graph = self._stream.end_capture()
        return Graph(graph, own, outputs)
