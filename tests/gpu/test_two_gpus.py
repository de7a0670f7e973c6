"""A host with several GPUs: all are used, each gives the answers of a single GPU, and a step that dies is reported."""

import functools
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
if not importlib.util.find_spec("pytriton"):
    pytest.skip("needs the pip-installed tritonserver", allow_module_level=True)
if cupy.cuda.runtime.getDeviceCount() < 2:
    pytest.skip("needs two GPUs", allow_module_level=True)

import torch  # noqa: E402
from rcnn_backend.contract.executions import read_executions  # noqa: E402
from rcnn_backend.devices import Gpu  # noqa: E402
from rcnn_backend.engines.aoti import TorchEngine  # noqa: E402
from rcnn_backend.engines.graphs import GraphCache  # noqa: E402
from rcnn_backend.errors import ServerError  # noqa: E402
from rcnn_backend.pipeline import Pipeline  # noqa: E402
from rcnn_backend.server.local_server import RunningServer, running_server  # noqa: E402
from rcnn_backend.server.mps import running_mps  # noqa: E402
from rcnn_client import Detector  # noqa: E402

from .asking import JPEGS, PICTURES, TIMEOUT_S, Clients, ask_pipeline, encode_png  # noqa: E402
from .exports import DETECTORS, export_samples  # noqa: E402
from .matched import FP16, FP32, assert_matched  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from rcnn_serve import rcnn_serve  # noqa: E402

# An AOTInductor export takes minutes.
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600), pytest.mark.xdist_group("two_gpus")]

PRECISIONS = {"onnx": "fp32", "cudnn": "fp16", "aoti": "fp16"}  # by engine
# A JPEG in a batch may be decoded differently by a level than the same one alone. The bounds for FP32 do not allow that.
PNGS = [encode_png(path) for path in PICTURES]
ENCODED = {"onnx": PNGS, "cudnn": JPEGS, "aoti": JPEGS}  # by engine
CLIENTS = 16
TOLD_S = 10.0  # rcnn-serve must end within this time after a step has died
OTHER_BYTES = 100 << 20  # less memory than any program on a GPU uses

Alone = Callable[[str, str, int], list[SimpleNamespace]]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what is measured out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """exported(engine): the repository for that engine, with both detectors. No export runs beside a test."""
    return functools.cache(
        lambda engine: export_samples(tmp_path_factory.mktemp(engine), engine, PRECISIONS[engine])
    )


@pytest.fixture(scope="module")
def alone(exported: Callable[[str], Path]) -> Alone:
    """alone(engine, name, gpu): the answers of a single process on that GPU to the pictures, without a server."""

    def ask(engine: str, name: str, gpu: int) -> list[SimpleNamespace]:
        return ask_pipeline(Pipeline.load(exported(engine), name, Gpu(gpu)), ENCODED[engine])

    return functools.cache(ask)


@pytest.fixture(scope="module", params=PRECISIONS)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_same(engine: str, found: object, expected: object, what: str) -> None:
    assert_matched(found, expected, FP32 if PRECISIONS[engine] == "fp32" else FP16, what)


def executions(server: RunningServer) -> Counter[tuple[str, int]]:
    """How often each model has executed on each GPU; every two numbers stand for one execution."""
    assert server.watch and server.hang_watch
    counts: Counter[tuple[str, int]] = Counter()
    for pid, stub in server.watch.stubs.items():
        assert stub.gpu is not None, stub
        counts[stub.model, stub.gpu] += read_executions(server.hang_watch.executions, pid) // 2
    return counts


def assert_both_gpus_answer(server: RunningServer, names: Iterable[str], engine: str, alone: Alone) -> None:
    """Checks that each picture gets the answer of a single GPU, and that every needed model has executed on both."""
    before = executions(server)
    encoded = ENCODED[engine]
    for name in names:
        began = time.monotonic()
        with Detector(server.grpc_url, name) as detector, ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(detector.detect, encoded * 30))
        print(f"{name}: {len(answers)} answers in {time.monotonic() - began:.1f} s")
        for number, answer in enumerate(answers):
            expected = alone(engine, name.removesuffix("_fused"), 0)[number % len(encoded)]
            assert_same(engine, answer, expected, f"{name}, request {number}")
    executed = executions(server)
    executed.subtract(before)
    print(f"executions: {dict(executed)}")
    for model in {model for (model, _), count in executed.items() if count}:
        assert executed[model, 0] and executed[model, 1], f"{model} executed on one GPU only: {executed}"
    assert server.dead_steps() == []


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
    """Without a graph and in a CUDA graph, while torch's current GPU is the first."""
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


@pytest.mark.parametrize(("fused", "model"), [("on", "boxes"), ("off", "boxes_proposals")])
def test_a_step_killed_on_the_second_gpu_ends_the_command(
    fused: str, model: str, exported: Callable[[str], Path], alone: Alone
) -> None:
    """Every request is answered correctly or refused, and the command serves again after a restart."""
    expected = alone("onnx", "boxes", 0)
    options = ("--models", "boxes", "--fused", fused, "--mps", "off")
    with rcnn_serve(exported("onnx"), *options) as serving:
        pid = next(pid for pid, stub in serving.stubs.items() if (stub.model, stub.gpu) == (model, 1))
        clients = Clients(serving.urls["grpc"], "boxes", PNGS, CLIENTS)
        while len(clients.answers) < 10 * CLIENTS and not clients.errors:
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        code = serving.process.wait(60)
        told_s = time.monotonic() - killed
        clients.finish()
        stderr = serving.stderr
    refusals = Counter(f"{type(error).__name__}: {error}"[:120] for error in clients.errors)
    print(f"ended after {told_s:.1f} s, {len(clients.answers)} answers, refusals: {dict(refusals)}")
    assert code == 1 and told_s < TOLD_S
    assert len(clients.errors) == CLIENTS
    assert f"the process of {serving.stubs[pid].instance} on GPU 1 ended" in stderr
    assert clients.longest_s < TIMEOUT_S  # no request waited for its deadline
    for picture, answer in clients.answers:
        assert_same("onnx", answer, expected[picture], f"picture {picture}")
    if fused == "on":
        with rcnn_serve(exported("onnx"), *options) as again, Detector(again.urls["grpc"], "boxes") as boxes:
            print(f"ready again {again.ready_s:.1f} s after its start")
            assert_same("onnx", boxes.detect(PNGS[0]), expected[0], "after the start")


@pytest.mark.parametrize("name", DETECTORS)
def test_the_second_gpu_answers_as_the_first(name: str, engine: str, alone: Alone) -> None:
    pairs = zip(alone(engine, name, 0), alone(engine, name, 1), strict=True)
    for number, (first, second) in enumerate(pairs):
        assert len(first.scores)
        assert_same(engine, second, first, f"picture {number}")


def test_every_gpu_answers_rightly(engine: str, exported: Callable[[str], Path], alone: Alone) -> None:
    """The ensembles and the fused models, together on one server."""
    names = [*DETECTORS, *(f"{name}_fused" for name in DETECTORS)]
    with running_server(exported(engine), names) as server:
        assert_both_gpus_answer(server, names, engine, alone)


def test_the_steps_on_both_gpus_compute_through_mps(exported: Callable[[str], Path], alone: Alone) -> None:
    try:
        with tempfile.TemporaryDirectory() as short, running_mps(Path(short)):
            pass
    except ServerError as error:
        pytest.skip(f"MPS: {error}")
    with running_server(exported("cudnn"), list(DETECTORS), mps="on") as server:
        assert_both_gpus_answer(server, DETECTORS, "cudnn", alone)


def test_only_the_chosen_gpu_is_used(exported: Callable[[str], Path], alone: Alone) -> None:
    expected = alone("onnx", "boxes", 0)
    before = cupy.cuda.Device(0).mem_info[0]
    options = ("--models", "boxes", "--fused", "on", "--mps", "off", "--gpus", "1")
    with rcnn_serve(exported("onnx"), *options) as serving, Detector(serving.urls["grpc"], "boxes") as boxes:
        # The number counts only the GPUs that the server sees.
        assert {stub.gpu for stub in serving.stubs.values()} == {0}
        for number, (png, answer) in enumerate(zip(PNGS, expected, strict=True)):
            assert_same("onnx", boxes.detect(png), answer, f"picture {number}")
        assert before - cupy.cuda.Device(0).mem_info[0] < OTHER_BYTES
