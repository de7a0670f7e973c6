"""The steps run on the current stream and never wait for the GPU."""

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
from rcnn_backend.contract.parameters import (  # noqa: E402
    DetectionParameters,
    PoolParameters,
    PreprocessParameters,
    ProposalParameters,
)
from rcnn_backend.operators.gpu import detections, kernels, preprocess, proposals  # noqa: E402

pytestmark = pytest.mark.gpu
PREPROCESS = PreprocessParameters(64, 96, None, [0.5] * 3, [0.2] * 3, 32, 10**8)
PROPOSALS = ProposalParameters(0.0, 0.7, 1e-3, [50], 5000)
POOLING = PoolParameters([4, 8], 224, 4, [7, 7], 2)
DETECTIONS = DetectionParameters(0.05, 0.5, 1e-2, 20)
SPIN = cupy.RawKernel(
    """extern "C" __global__ void spin(long long cycles) {
        for (long long start = clock64(); clock64() - start < cycles;) {}
    }""",
    "spin",
)


def make_inputs() -> list["cupy.ndarray"]:
    random = np.random.default_rng(3)
    rows = random.uniform(0, 40, (2, 300, 6)).astype(np.float32)
    rows[..., 3:5] += rows[..., 1:3]
    rows[..., 5] = 0
    features = [random.uniform(0, 1, (2, 8, side, side)).astype(np.float16) for side in (24, 12)]
    picture = random.integers(0, 256, (50, 70, 3), np.uint8)
    return [cupy.asarray(array) for array in (picture, rows, *features)]


def run_steps(
    picture: "cupy.ndarray", rows: "cupy.ndarray", *features: "cupy.ndarray"
) -> list["cupy.ndarray"]:
    network_input, sizes = preprocess.preprocess([picture, picture[:30]], PREPROCESS)
    found = proposals.propose(rows, features, sizes, PROPOSALS, POOLING)
    scores = found[1][:, :, :3, 0, 0].astype(np.float32)
    boxes = cupy.repeat(found[0][:, :, None], 3, axis=2)
    return [
        network_input,
        sizes,
        *found,
        *detections.detect(scores, boxes, found[2], sizes, [DETECTIONS] * 2, 20),
    ]


def test_another_stream_gives_the_same_and_nothing_waits() -> None:
    inputs = make_inputs()
    expected = [array.get() for array in run_steps(*inputs)]
    assert expected[4].min() > 10  # proposals
    assert expected[8].min() > 1  # detections
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        run_steps(*inputs)  # allocates the stream's own memory
        stream.synchronize()
        SPIN((1,), (1,), (np.int64(10**9),))  # half a second
        found = run_steps(*inputs)
        assert not stream.done
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours.get(), theirs)


def test_warm_up_leaves_nothing_to_compile() -> None:
    preprocess.warm_up(PREPROCESS)
    preprocess.warm_up(PREPROCESS, np.float16)
    proposals.warm_up(PROPOSALS, POOLING)
    detections.warm_up(DETECTIONS)
    compiled = kernels._compile.cache_info().misses
    run_steps(*make_inputs())
    assert kernels._compile.cache_info().misses == compiled
