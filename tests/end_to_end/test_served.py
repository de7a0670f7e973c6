"""The sample detector on the real tritonserver: its answers, and its errors for bad input."""

import http.client
import io
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from PIL import Image
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_client import BatchError, Detections, Detector, InvalidImageError
from rcnn_export.detector import load as torch_detector

pytestmark = pytest.mark.xdist_group("server")

PICTURES = sorted((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))
OUTPUTS = ("boxes", "scores", "labels", "num_detections")


@pytest.fixture(scope="module")
def server(digits_repository: Path) -> Iterator[RunningServer]:
    with running_server(digits_repository, models=["digits"]) as running:
        yield running


@pytest.fixture(scope="module")
def detector(server: RunningServer) -> Iterator[Detector]:
    with Detector(server.grpc_url, "digits") as connected:
        yield connected


@pytest.fixture(autouse=True)
def stays_ready(server: RunningServer) -> Iterator[None]:
    yield
    connection = http.client.HTTPConnection(server.urls["http"])
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().status == 200


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ask(
    server: RunningServer, pictures: list[bytes], parameters: dict | None = None
) -> dict[str, np.ndarray]:
    """Send several pictures in one request, which the project's client never does."""
    tensor = triton.InferInput("image", [len(pictures), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(pictures, object).reshape(-1, 1))
    with triton.InferenceServerClient(server.grpc_url) as client:
        result = client.infer("digits", [tensor], parameters=parameters, client_timeout=60)
    return {name: result.as_numpy(name) for name in OUTPUTS}


def assert_same(ours: Detections, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> None:
    np.testing.assert_array_equal(ours.labels, labels)
    np.testing.assert_allclose(ours.scores, scores, atol=1e-4)
    np.testing.assert_allclose(ours.boxes, boxes, atol=0.05)


def test_answers_are_torchvisions(detector: Detector, digits: torch_detector.Detector) -> None:
    for path in PICTURES:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        with torch.no_grad():
            (expected,) = digits.model([torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255])
        found = detector.detect(path)
        assert len(found)
        assert_same(found, *(expected[name].numpy() for name in ("boxes", "scores", "labels")))
        assert found.class_names == [digits.class_names[label] for label in expected["labels"]]


def test_the_pipeline_in_process_gives_the_served_answers(
    detector: Detector, digits_repository: Path
) -> None:
    pipeline = Pipeline.load(digits_repository, "digits")
    for path in PICTURES:
        found = pipeline.detect([path.read_bytes()])
        count = found.num_detections[0, 0]
        assert_same(
            detector.detect(path), found.boxes[0, :count], found.scores[0, :count], found.labels[0, :count]
        )


def test_a_batch_of_8_equals_8_requests(server: RunningServer, detector: Detector) -> None:
    picture = Image.open(PICTURES[0]).convert("RGB")
    turned = [encode(picture.rotate(angle)) for angle in range(0, 40, 5)]  # the same size, different contents
    batch = ask(server, turned)
    for index, data in enumerate(turned):
        single = detector.detect(data)
        assert batch["num_detections"][index, 0] == len(single)
        count = len(single)
        np.testing.assert_array_equal(batch["labels"][index, :count], single.labels)
        np.testing.assert_allclose(batch["boxes"][index, :count], single.boxes, atol=1e-3)
        np.testing.assert_allclose(batch["scores"][index, :count], single.scores, atol=1e-5)
        assert not batch["boxes"][index, count:].any()


def test_concurrent_requests_of_mixed_sizes_get_their_own_answers(detector: Detector) -> None:
    pictures = [
        encode(Image.open(path).convert("RGB").resize(size))
        for path in PICTURES
        for size in [(200, 300), (320, 240)]
    ]
    alone = [detector.detect(picture) for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(detector.detect, pictures * 3))
    for answer, expected in zip(together, alone * 3, strict=True):
        assert_same(answer, expected.boxes, expected.scores, expected.labels)


def claimed_bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"I am no picture at all", "not an image of a known format"),
        (PICTURES[0].read_bytes()[:2000] if PICTURES else b"", "damaged or cut short"),
        (claimed_bomb(), "30000x30000 pixels, more than"),
        (encode(Image.new("L", (9000, 1))), "too elongated"),
    ],
)
def test_bad_pictures_are_invalid_arguments_that_name_the_fault(
    detector: Detector, data: bytes, message: str
) -> None:
    with pytest.raises(InvalidImageError, match=message):
        detector.detect(data)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_kind_of_pixel_gets_boxes(detector: Detector, mode: str) -> None:
    picture = Image.open(PICTURES[0])
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) << 8)
    else:
        picture = picture.convert(mode)
    assert len(detector.detect(encode(picture, "TIFF" if mode == "CMYK" else "PNG")))


def test_exif_rotation_is_applied(detector: Detector) -> None:
    upright = Image.open(PICTURES[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    expected = detector.detect(encode(upright))
    assert_same(detector.detect(encode(stored, exif=exif)), expected.boxes, expected.scores, expected.labels)


def test_animation_and_one_pixel(detector: Detector) -> None:
    frames = [Image.open(PICTURES[0]).convert("P"), Image.new("P", (8, 8))]
    assert len(detector.detect(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert len(detector.detect(encode(Image.new("RGB", (1, 1))))) == 0


def test_no_detection_is_an_empty_answer(detector: Detector) -> None:
    found = detector.detect(PICTURES[0], score_thresh=1.0)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


def test_a_request_of_several_pictures_names_the_bad_one(server: RunningServer) -> None:
    good = PICTURES[0].read_bytes()
    with pytest.raises(
        triton.InferenceServerException, match=r"image 1 of the 3 in this request: .*not an image"
    ):
        ask(server, [good, b"bad picture", good])


def test_batch_mates_of_a_bad_picture_get_their_boxes(detector: Detector) -> None:
    good = PICTURES[0].read_bytes()
    expected = detector.detect(good)
    with pytest.raises(BatchError) as caught:
        detector.detect_batch([good, b"bad", good, b"", good, good, good])
    assert sorted(caught.value.errors) == [1, 3]
    for index in (0, 2, 4, 5, 6):
        answer = caught.value.results[index]
        assert answer is not None
        assert_same(answer, expected.boxes, expected.scores, expected.labels)


def test_request_parameters_override_and_are_checked(server: RunningServer, detector: Detector) -> None:
    data = PICTURES[0].read_bytes()
    everything = detector.detect(data, score_thresh=0.0)
    few = detector.detect(data, detections_per_img=2)
    assert len(everything) > len(few) == 2
    merged = detector.detect(data, nms_thresh=0.0)
    assert len(merged) <= len(detector.detect(data))
    with pytest.raises(triton.InferenceServerException, match="score_thresh is 'high': expected a number"):
        ask(server, [data], {"score_thresh": "high"})
