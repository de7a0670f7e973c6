"""The ensemble on a real tritonserver with a GPU: answers are correct, and no tensor goes through the CPU."""

import importlib.util
import io
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image, ImageFilter, ImageOps

pytest.importorskip("cupy")
if not importlib.util.find_spec("pytriton"):
    pytest.skip("needs the pip-installed tritonserver", allow_module_level=True)

from rcnn_backend.contract.chain_types import pyramid
from rcnn_backend.operators.proposals import propose
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_backend.steps.lost_tensors import take_samples
from rcnn_client import Detections, Detector, InvalidImageError

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("digits")]

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "export" / "samples"
PICTURES = sorted((SAMPLES / "pictures").glob("*.jpg"))
STEPS = ("preprocess", "rpn", "proposals", "header", "detections")


@pytest.fixture(scope="module")
def server(digits_repository: Path) -> Iterator[RunningServer]:
    with running_server(digits_repository, models=["digits"]) as running:
        yield running


@pytest.fixture(scope="module")
def detector(server: RunningServer) -> Iterator[Detector]:
    with Detector(server.grpc_url, "digits") as connected:
        yield connected


@pytest.fixture(scope="module")
def pipeline(digits_repository: Path) -> Pipeline:
    """The same detector on the CPU, in this process."""
    return Pipeline.load(digits_repository, "digits")


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def open_rgb(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def assert_near(found: Detections, expected: Detections, box_px: float = 0.1, score: float = 1e-3) -> None:
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=box_px)
    np.testing.assert_allclose(found.scores, expected.scores, atol=score)


def detect_on_cpu(pipeline: Pipeline, data: bytes) -> Detections:
    found = pipeline.detect([data])
    boxes, scores, labels, counts = found.boxes, found.scores, found.labels, found.num_detections
    real = slice(int(counts[0, 0]))
    names = [pipeline.class_names[label] for label in labels[0, real]]
    return Detections(boxes[0, real], scores[0, real], labels[0, real], names)


def cpu_bytes(server: RunningServer) -> dict[str, float]:
    """For each step, the bytes of tensors that reached it through the CPU; a step on the CPU has no entry."""
    text = urllib.request.urlopen(f"http://{server.urls['metrics']}/metrics").read().decode()
    lines = [line for line in text.splitlines() if line.startswith("rcnn_cpu_tensor_bytes_total{")]
    return {
        line.split('model="')[1].split('"')[0].removeprefix("digits_"): float(line.split()[-1])
        for line in lines
    }


def test_answers_are_those_of_the_cpu(detector: Detector, pipeline: Pipeline) -> None:
    for path in PICTURES:
        data = encode(open_rgb(path))
        expected = detect_on_cpu(pipeline, data)
        assert len(expected)
        assert_near(detector.detect(data), expected)


def test_no_tensor_goes_by_way_of_the_cpu(server: RunningServer, detector: Detector) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(detector.detect, [path.read_bytes() for path in PICTURES] * 20))
    assert cpu_bytes(server) == dict.fromkeys(STEPS, 0)


def test_tensors_on_the_cpu_are_taken_too(server: RunningServer, pipeline: Pipeline) -> None:
    pixels = np.asarray(open_rgb(PICTURES[0]))
    names = ("input", "image_sizes", "preprocess_samples")
    with triton.InferenceServerClient(server.grpc_url) as client:
        given = triton.InferInput("image", [1, 1], "BYTES")
        given.set_data_from_numpy(np.array([[encode(Image.fromarray(pixels))]], object))
        answer = client.infer("digits_preprocess", [given])
        tensors = {name: answer.as_numpy(name) for name in names}
        rpn = pipeline.engines["rpn"].run({"input": tensors.pop("input")})
        expected = propose(
            rpn["rpn_boxes"],
            pyramid(rpn),
            tensors["image_sizes"],
            pipeline.proposal_parameters,
            pipeline.pool_parameters,
        )
        inputs = []
        for name, array in (rpn | tensors).items():
            inputs.append(triton.InferInput(name, array.shape, "FP32"))
            inputs[-1].set_data_from_numpy(array)
        answer = client.infer("digits_proposals", inputs)
    count = expected.num_proposals[0, 0]
    assert answer.as_numpy("num_proposals")[0, 0] == count
    np.testing.assert_allclose(answer.as_numpy("proposals")[0, :count], expected.boxes[0, :count], atol=1e-3)
    pooled = answer.as_numpy("roialigned_feature")[0, :count]
    np.testing.assert_allclose(pooled, expected.roialigned_feature[0, :count], atol=1e-4)


def test_a_lost_tensor_is_an_error(server: RunningServer, pipeline: Pipeline) -> None:
    """The samples show that the proposals step did not get the tensor that was sent."""
    sizes = np.array([[320, 416, 320, 416]], np.float32)
    rpn = pipeline.engines["rpn"].run({"input": np.ones((1, 3, 320, 416), np.float32)})
    tensors = rpn | {
        "image_sizes": sizes,
        "preprocess_samples": take_samples([np.ones((1, 3, 320, 416), np.float32), sizes]),
    }
    tensors["feature_1"] = np.zeros_like(tensors["feature_1"])
    inputs = []
    for name, array in tensors.items():
        inputs.append(triton.InferInput(name, array.shape, "FP32"))
        inputs[-1].set_data_from_numpy(array)
    with (
        triton.InferenceServerClient(server.grpc_url) as client,
        pytest.raises(
            triton.InferenceServerException, match=r"feature_1 got lost .*--cuda-memory-pool"
        ) as caught,
    ):
        client.infer("digits_proposals", inputs)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"


def test_mixed_sizes_at_once_get_their_own_answers(detector: Detector) -> None:
    sizes = [(416, 320), (320, 416), (200, 300), (640, 480)]
    pictures = [encode(open_rgb(path).resize(size)) for path in PICTURES for size in sizes]
    alone = [detector.detect(picture, score_thresh=0.1) for picture in pictures]
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda picture: detector.detect(picture, score_thresh=0.1), pictures * 4)
    for answer, expected in zip(answers, alone * 4, strict=True):
        assert_near(answer, expected)


def test_jpegs_decoded_on_the_gpu_are_near_those_of_pillow(detector: Detector) -> None:
    """nvJPEG's and libjpeg's inverse transforms round differently, by a level or two."""
    pytest.importorskip("nvidia.nvimgcodec")
    for path in PICTURES:
        expected = detector.detect(encode(open_rgb(path)), score_thresh=0.5)
        assert_near(detector.detect(path, score_thresh=0.5), expected, box_px=1, score=0.05)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_kinds_of_jpeg(detector: Detector, mode: str) -> None:
    picture = Image.open(PICTURES[0]).convert(mode)
    expected = detector.detect(encode(Image.open(io.BytesIO(encode(picture, "JPEG"))).convert("RGB")))
    found = detector.detect(encode(picture, "JPEG"), score_thresh=0.5)
    count = len(found)
    assert count
    assert_near(
        found,
        Detections(*(array[:count] for array in (expected.boxes, expected.scores, expected.labels)), []),
        box_px=1,
        score=0.05,
    )


def test_exif_orientation_is_applied_on_the_gpu(detector: Detector) -> None:
    upright = open_rgb(PICTURES[0]).filter(ImageFilter.SMOOTH)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encode(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=98, exif=exif)
    as_pillow_sees_it = ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
    expected = detector.detect(encode(as_pillow_sees_it), score_thresh=0.5)
    assert_near(detector.detect(stored, score_thresh=0.5), expected, box_px=1, score=0.05)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"no picture", "not an image of a known format"),
        (PICTURES[0].read_bytes()[:2000], "damaged or cut short"),
        (encode(Image.new("L", (9000, 1)), "JPEG"), "too elongated"),
    ],
)
def test_bad_pictures_and_their_batch_mates(detector: Detector, data: bytes, message: str) -> None:
    good = PICTURES[0].read_bytes()
    expected = detector.detect(good)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(detector.detect, picture) for picture in [good, data] * 8]
    for good_answer, bad_answer in zip(answers[::2], answers[1::2], strict=True):
        assert_near(good_answer.result(), expected)
        with pytest.raises(InvalidImageError, match=message):
            bad_answer.result()


@pytest.mark.parametrize("pinned_bytes", [256 << 20, 0])
def test_a_full_memory_pool_never_gives_a_wrong_box(digits_repository: Path, pinned_bytes: int) -> None:
    """Without pinned memory nothing is lost; with it, a lost tensor is an error that says what to do."""
    soak = ROOT / "tests" / "benchmarks" / "soak.py"
    command = [
        sys.executable,
        str(soak),
        "--repository",
        str(digits_repository),
        "--seconds",
        "8",
        "--errors-allowed",
    ]
    flags = ["--cuda-memory-pool-byte-size=0:20000000", f"--pinned-memory-pool-byte-size={pinned_bytes}"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    if pinned_bytes:
        assert "got lost between two steps: Triton's CUDA memory pool is full" in done.stdout
    else:
        assert " 0 wrong, 0 errors" in done.stdout
