"""A host with several GPUs: all are used, and what lies on another one is copied."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
if not importlib.util.find_spec("pytriton"):
    pytest.skip("needs the pip-installed tritonserver", allow_module_level=True)
if cupy.cuda.runtime.getDeviceCount() < 2:
    pytest.skip("needs two GPUs", allow_module_level=True)

import torch  # noqa: E402
from rcnn_backend.devices import Gpu  # noqa: E402
from rcnn_backend.engines.aoti import TorchEngine  # noqa: E402
from rcnn_backend.engines.graphs import GraphCache  # noqa: E402
from rcnn_backend.server.local_server import running_server  # noqa: E402
from rcnn_client import Detector  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("digits")]

PICTURES = sorted((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))


def test_an_array_of_another_gpu_is_copied() -> None:
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    with cupy.cuda.Device(0):
        elsewhere = cupy.asarray(numbers)
        cupy.cuda.Device(0).synchronize()
    second = Gpu(1)
    with second.active():
        here = second.import_array(elsewhere)
        assert here.device.id == 1
        (found,) = second.download([here * 2])
    np.testing.assert_array_equal(found, numbers * 2)


def test_a_package_works_in_the_memory_of_the_second_gpu(
    compiled_network: tuple[torch.nn.Module, Path],
) -> None:
    """As it is and in a CUDA graph; torch's current GPU is the first."""
    network, path = compiled_network
    second = Gpu(1)
    engine = TorchEngine(path, second)
    assert torch.cuda.current_device() == 0
    cache = GraphCache(lambda pixels: list(engine.run({"input": pixels}).values()), second)
    random = np.random.default_rng(3)
    with second.active(), torch.no_grad():
        for batch in (2, 3, 2, 3, 2, 3):
            pixels = random.uniform(0, 1, (batch, 3, 16, 16)).astype(np.float32)
            expected = network(torch.from_numpy(pixels).cuda(0))
            found = cache(cupy.asarray(pixels))
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.device.id == 1
                np.testing.assert_allclose(ours.get(), theirs.cpu().numpy(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("model", ["digits", "digits_fused"])
def test_every_gpu_answers_rightly(digits_repository: Path, model: str) -> None:
    before = [cupy.cuda.Device(device).mem_info[0] for device in (0, 1)]
    with running_server(digits_repository, [model]) as server, Detector(server.grpc_url, model) as detector:
        expected = [detector.detect(path) for path in PICTURES]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(detector.detect, PICTURES * 30))
        during = [cupy.cuda.Device(device).mem_info[0] for device in (0, 1)]
    for answer, alone in zip(answers, expected * 30, strict=True):
        np.testing.assert_array_equal(answer.labels, alone.labels)
        np.testing.assert_allclose(answer.boxes, alone.boxes, atol=0.1)
    assert all(free < was for free, was in zip(during, before, strict=True))
