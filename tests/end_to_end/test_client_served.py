"""The client with the real server: server info, pixels, streams, tiles, asyncio, the examples."""

import asyncio
import importlib
import importlib.util
import io
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from rcnn_backend.server.local_server import RunningServer
from rcnn_client import (
    DeadlineExceededError,
    Detections,
    Detector,
    InvalidImageError,
    aio,
)

pytestmark = pytest.mark.xdist_group("client")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "client" / "examples"
PICTURES = sorted((ROOT / "export" / "samples" / "pictures").glob("*.jpg"))
SHARED = Path("/dev/shm")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def assert_same(ours: Detections, theirs: Detections) -> None:
    assert len(ours) == len(theirs) > 0
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    np.testing.assert_allclose(ours.boxes[:3], theirs.boxes[:3], atol=0.05)


def test_info(both_ensembles: RunningServer) -> None:
    with Detector(both_ensembles.grpc_url, "digits") as detector:
        assert detector.is_ready()
        info = detector.info()
        limits = (info.max_batch_size, info.max_detections, info.max_image_pixels)
        assert limits == (8, 100, 50_000_000) and info.takes_pixels
        assert (info.model, info.versions, info.class_names[:2]) == ("digits", ["1"], ["__background__", "0"])
        assert (info.engine, info.precision) == ("onnxruntime", "fp32")
        assert info.server.startswith("triton 2.")
    with Detector(both_ensembles.grpc_url, "no_such_model") as detector:
        assert not detector.is_ready()


@pytest.mark.parametrize("transport", ["grpc", "shm"])
def test_pixels_get_the_answers_of_the_encoded_picture(both_ensembles: RunningServer, transport: str) -> None:
    with Detector(both_ensembles.grpc_url, "digits", transport=transport) as detector:
        for path in PICTURES:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            sent, encoded = detector.detect(pixels), detector.detect(path)
            np.testing.assert_array_equal(sent.labels, encoded.labels)
            np.testing.assert_allclose(sent.boxes, encoded.boxes, atol=0.05)
        grey = np.asarray(Image.open(PICTURES[0]).convert("L"))
        assert_same(detector.detect(grey), detector.detect(Image.fromarray(grey)))
        assert detector.detect(np.zeros((1, 1, 3), np.uint8)).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7100, 7100, 3), "image claims 7100x7100 pixels, more than the 50000000 this model accepts"),
        ((1, 9000, 3), "image of 9000x1 pixels is too elongated"),
    ],
)
def test_pixels_have_the_limits_of_encoded_pictures(
    both_ensembles: RunningServer, shape: tuple[int, ...], message: str
) -> None:
    with (
        Detector(both_ensembles.grpc_url, "digits") as detector,
        pytest.raises(InvalidImageError, match=message),
    ):
        detector.detect(np.zeros(shape, np.uint8))


def test_the_preprocess_step_takes_one_of_its_two_inputs(
    strips: list[np.ndarray], both_ensembles: RunningServer
) -> None:
    pixels = triton.InferInput("pixels", [2, 30, 40, 3], "UINT8")
    pixels.set_data_from_numpy(np.zeros((2, 30, 40, 3), np.uint8))
    image = triton.InferInput("image", [2, 1], "BYTES")
    image.set_data_from_numpy(np.array([[png(strips[0])]] * 2, object))
    empty = triton.InferInput("pixels", [1, 0, 40, 3], "UINT8")
    empty.set_data_from_numpy(np.zeros((1, 0, 40, 3), np.uint8))
    with triton.InferenceServerClient(both_ensembles.grpc_url) as client:
        for given in (pixels, image):
            assert client.infer("digits_preprocess", [given]).as_numpy("input").shape[0] == 2
        with pytest.raises(triton.InferenceServerException, match="has image and pixels: send either"):
            client.infer("digits_preprocess", [pixels, image])
        with pytest.raises(triton.InferenceServerException, match=r"empty \(40x0 pixels\)"):
            client.infer("digits_pixels", [empty])


def test_a_stream_of_arrays_and_encoded_pictures_of_mixed_sizes(
    strips: list[np.ndarray], both_ensembles: RunningServer, expected: list[Detections]
) -> None:
    """Checks the order, the errors and how many pictures are held for 240 pictures, three of them corrupt."""
    corrupt = {17: b"no picture", 99: png(strips[0])[:300], 200: np.zeros((1, 9000, 3), np.uint8)}
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def pictures() -> Iterator[np.ndarray | bytes]:
        nonlocal most
        for index in range(240):
            strip = strips[index % 12].copy()
            alive.append(weakref.ref(strip))
            alive[:] = [reference for reference in alive if reference() is not None]
            most = max(most, len(alive))
            yield corrupt.get(index, strip if index % 5 else png(strip))

    with Detector(both_ensembles.grpc_url, "digits") as detector:
        failed = {}
        for index, result in enumerate(detector.detect_stream(pictures(), in_flight=8, score_thresh=0.0)):
            if result.error:
                failed[index] = str(result.error)
                assert isinstance(result.error, InvalidImageError)
            else:
                assert_same(result.detections, expected[index % 12])
    assert index == 239 and most <= 2 * 8 + 3
    assert list(failed) == list(corrupt)
    assert all(message.startswith(f"image {index}: ") for index, message in failed.items())


def test_async(strips: list[np.ndarray], both_ensembles: RunningServer, expected: list[Detections]) -> None:
    async def run() -> None:
        async with aio.Detector(both_ensembles.grpc_url, "digits", transport="shm") as detector:
            assert await detector.is_ready() and (await detector.info()).takes_pixels
            index = 0
            async for result in detector.detect_stream(strips * 4, score_thresh=0.0):
                assert_same(result.detections, expected[index % 12])
                index += 1
            assert index == 48
            with pytest.raises(DeadlineExceededError):
                await detector.detect(PICTURES[0], timeout_s=0.005)

    asyncio.run(run())
    with triton.InferenceServerClient(both_ensembles.grpc_url) as client:
        assert not client.get_system_shared_memory_status().regions
    assert not list(SHARED.glob("rcnn_client_*"))


@pytest.mark.long
def test_the_streaming_benchmark(both_ensembles: RunningServer, tmp_path: Path) -> None:
    """Checks with a small version that the benchmark runs and checks the answers, but not how fast it is."""
    spec = importlib.util.spec_from_file_location("stream", ROOT / "tests" / "benchmarks" / "stream.py")
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules["stream"] = benchmark  # its dataclass needs this entry
    spec.loader.exec_module(benchmark)
    files, corrupt = benchmark.write_pictures(tmp_path, 25)
    done = benchmark.measure(both_ensembles.grpc_url, "digits", files, corrupt, in_flight=4)
    assert done.wrong == [] and sorted(done.failed) == sorted(path.name for path in corrupt)
    assert len(corrupt) == 3 and done.stream_s > 0 and done.infer_s > 0
    assert min(done.perf_analyzer_per_s) > 0


def run_example(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_streaming_example(both_ensembles: RunningServer, tmp_path: Path) -> None:
    for path in PICTURES:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "corrupt.jpg").write_bytes(PICTURES[0].read_bytes()[:300])
    done = run_example("stream.py", tmp_path, "--url", both_ensembles.grpc_url, "--model", "digits")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [path.name for path in PICTURES]
    assert all(line["detections"][0]["class_name"] in "0123456789" for line in lines)
    assert done.returncode == 1 and done.stderr.startswith(f"{tmp_path}/corrupt.jpg: ")


def test_the_async_example(both_ensembles: RunningServer) -> None:
    pictures = [*PICTURES, Path("missing.jpg")]
    done = run_example("asynchronous.py", *pictures, "--url", both_ensembles.grpc_url, "--model", "digits")
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(path) for path in pictures], done.stderr
    assert lines[-1] == "missing.jpg: no answer: missing.jpg: cannot be read: No such file or directory"
    assert all(set(line.rpartition(": ")[2]) <= set("0123456789, ") for line in lines[:-1])


def test_small_digits_in_a_large_picture(
    both_ensembles: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a small benchmark, tiles raise AP by at least 0.1, and sending one tile at a time gives the same AP."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    benchmark = importlib.import_module("tiles")
    picture = benchmark.compose_large_picture((800, 1100))
    encoded = picture.encode()
    with Detector(both_ensembles.grpc_url, "digits") as detector:
        ways = benchmark.make_ways(detector, (480, 480), 0.35, 8, None, 0.05)
        benchmark.measure(ways, encoded, turns=1)
        assert len(benchmark.report(ways, picture).rows) == 3
        untiled, one, many = (benchmark.average_precision(picture, way.found) for way in ways)
        assert many > untiled + 0.1
        assert one == pytest.approx(many, abs=1e-3)

    async def detect_tiled():
        async with aio.Detector(both_ensembles.grpc_url, "digits") as detector:
            return await detector.detect_tiled(encoded, (480, 480), 0.35, score_thresh=0.5)

    found = asyncio.run(detect_tiled())
    assert np.isin(found.labels, picture.labels).all()
    assert (found.boxes >= 0).all() and (found.boxes <= [1100, 800, 1100, 800]).all()
    assert benchmark.average_precision(picture, found) > 0.5
