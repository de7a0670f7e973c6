"""A CUDA graph gives the same answers as the same calls without a graph."""

from pathlib import Path

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
import torch  # noqa: E402
from rcnn_backend.devices import Gpu  # noqa: E402
from rcnn_backend.engines import graphs  # noqa: E402
from rcnn_backend.engines.aoti import TorchEngine  # noqa: E402
from rcnn_backend.engines.graphs import GraphCache  # noqa: E402

pytestmark = pytest.mark.gpu
RANDOM = np.random.default_rng(9)


class CountedCalls:
    """Computes two outputs from two inputs, with temporary memory; counts how often Python runs it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, left: "cupy.ndarray", right: "cupy.ndarray") -> list["cupy.ndarray"]:
        self.count += 1
        total = cupy.add(left, right)
        return [cupy.multiply(total, 2), cupy.sqrt(cupy.abs(total))]


def random_pair(*shape: int) -> list["cupy.ndarray"]:
    return [cupy.asarray(RANDOM.normal(0, 1, shape).astype(np.float32)) for _ in range(2)]


def test_the_third_time_nothing_runs_in_python() -> None:
    device, calls = Gpu(0), CountedCalls()
    cache = GraphCache(calls, device)
    with device.active():
        for shape in ((3, 5), (1000, 7), (3, 5), (3, 5), (1000, 7), (3, 5)):
            pair = random_pair(*shape)
            total = pair[0].get() + pair[1].get()
            found = [array.get() for array in cache(*pair)]
            np.testing.assert_allclose(found[0], 2 * total, rtol=1e-6)
            np.testing.assert_allclose(found[1], np.sqrt(np.abs(total)), rtol=1e-6)
    assert calls.count == 4  # each shape once without a graph and once captured


def test_the_graph_unused_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    device, calls = Gpu(0), CountedCalls()
    cache = GraphCache(calls, device)
    with device.active():
        for size in (1, 1, 2, 2, 1, 3, 3, 1):  # the graph of 2 is dropped for that of 3
            cache(*random_pair(size, 4))
        assert calls.count == 6
        cache(*random_pair(2, 4))
        device.synchronize()
    assert calls.count == 7


def test_a_failed_capture_leaves_the_stream_and_the_other_graphs(caplog: pytest.LogCaptureFixture) -> None:
    device, calls = Gpu(0), CountedCalls()

    def compute(left: "cupy.ndarray", right: "cupy.ndarray") -> list["cupy.ndarray"]:
        outputs = calls(left, right)
        if len(left) in (4, 6):
            device.synchronize()  # not permitted during a capture
        return outputs

    cache = GraphCache(compute, device)
    with device.active():
        for size in (9, 9, 3, 3, 4, 4, 4, 9, 3, 6, 6, 5, 5, 5, 4, 6, 3):
            pair = random_pair(size, 1000)
            total = pair[0].get() + pair[1].get()
            found = [array.get() for array in cache(*pair)]
            np.testing.assert_allclose(found[0], 2 * total, rtol=1e-6)
            np.testing.assert_allclose(found[1], np.sqrt(np.abs(total)), rtol=1e-6)
    assert calls.count == 6 + 4 + 1 + 3 + 1  # 9, 3 and 5 twice; 4 and 6 each time, and once in their captures
    (record,) = caplog.records
    assert "(4, 1000)" in record.getMessage()
    assert record.exc_info


def test_more_shapes_take_no_more_memory() -> None:
    device = Gpu(0)
    cache = GraphCache(CountedCalls(), device)
    with device.active():
        pairs = [random_pair(size, 1000) for size in (200, 100, 7, 150)]
        held = 0
        for left, right in pairs:
            for _ in range(3):
                np.testing.assert_allclose(cache(left, right)[0].get(), 2 * (left + right).get(), rtol=1e-6)
            held = held or cache._memory.total_bytes()
    assert cache._memory.total_bytes() == held


def test_without_memory_for_a_shape_the_graphs_of_others_keep_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(size: int) -> None:
        raise cupy.cuda.runtime.CUDARuntimeError(2)  # cudaErrorMemoryAllocation

    device = Gpu(0)
    cache = GraphCache(CountedCalls(), device)
    small, large = random_pair(3, 5), random_pair(1000, 1000)
    with device.active():
        for _ in range(2):
            cache(*small)
        held = cache._memory.total_bytes()
        with monkeypatch.context() as full:
            full.setattr(cupy.cuda, "Memory", fail)
            with pytest.raises(MemoryError, match="the GPU has no 4000256 bytes to work in"):
                cache(*large)
            assert cache._memory.total_bytes() == held
        for pair in (small, large, large, small):
            np.testing.assert_allclose(cache(*pair)[0].get(), 2 * (pair[0] + pair[1]).get(), rtol=1e-6)


def test_a_package_runs_in_a_graph(compiled_network: tuple[torch.nn.Module, Path]) -> None:
    """Other computations do not overwrite AOTInductor's memory in a graph."""
    network, path = compiled_network
    device = Gpu(0)
    engine = TorchEngine(path, device)
    assert engine.is_capturable
    cache = GraphCache(lambda pixels: list(engine.run({"input": pixels}).values()), device)
    with device.active(), torch.no_grad():
        for batch in (2, 3, 2, 3, 2, 3, 2):
            pixels = RANDOM.uniform(0, 1, (batch, 3, 16, 16)).astype(np.float32)
            expected = network(torch.from_numpy(pixels).cuda())
            found = cache(cupy.asarray(pixels))
            eager = engine.run({"input": cupy.asarray(pixels[:1])})
            for ours, theirs in zip(
                [*found, *eager.values()], [*expected, *(e[:1] for e in expected)], strict=True
            ):
                np.testing.assert_allclose(ours.get(), theirs.cpu().numpy(), rtol=1e-2, atol=1e-2)
