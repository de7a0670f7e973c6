"""The whole detector in one process on the real tritonserver gives the answers and the errors of the ensemble."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from rcnn_backend.errors import RepositoryError
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_backend.server.model_selection import select_models
from rcnn_backend.server.stub_processes import find_stubs
from rcnn_client import Detections, Detector, InvalidImageError, RcnnError

pytestmark = pytest.mark.xdist_group("server")

PICTURES = sorted((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))
OUTPUTS = ("boxes", "scores", "labels", "num_detections")


@pytest.fixture(scope="module")
def server(digits_repository: Path) -> Iterator[RunningServer]:
    with running_server(digits_repository, models=["digits", "digits_fused"]) as running:
        yield running


@pytest.fixture(scope="module")
def expected(server: RunningServer) -> list[Detections]:
    """The ensemble's answer to each picture."""
    with Detector(server.grpc_url, "digits") as ensemble:
        return [ensemble.detect(path) for path in PICTURES]


@pytest.fixture(scope="module")
def fused(server: RunningServer) -> Iterator[Detector]:
    with Detector(server.grpc_url, "digits_fused") as connected:
        yield connected


def assert_same(found: Detections, expected: Detections) -> None:
    assert found.class_names == expected.class_names
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_answers_are_those_of_the_ensemble(server: RunningServer, fused: Detector) -> None:
    with Detector(server.grpc_url, "digits") as ensemble:
        for path in PICTURES:
            assert len(fused.detect(path))
            assert_same(fused.detect(path), ensemble.detect(path))
            assert_same(fused.detect(path, score_thresh=0.9), ensemble.detect(path, score_thresh=0.9))


def test_requests_at_once_get_their_own_answers(fused: Detector) -> None:
    pictures = [
        np.asarray(Image.open(path).convert("RGB").resize(size))
        for path in PICTURES
        for size in ((416, 320), (300, 400))
    ]
    alone = [fused.detect(picture) for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(fused.detect, pictures * 3))
    for answer, expected in zip(together, alone * 3, strict=True):
        assert_same(answer, expected)


def test_bad_requests_leave_their_batch_mates_alone(fused: Detector) -> None:
    good = PICTURES[0].read_bytes()
    expected = fused.detect(good)
    with ThreadPoolExecutor(8) as pool:
        bad = [pool.submit(fused.detect, b"no picture") for _ in range(4)]
        wrong = [pool.submit(fused.detect, good, detections_per_img=10**6) for _ in range(2)]
        answers = [pool.submit(fused.detect, good) for _ in range(8)]
    for answer in answers:
        assert_same(answer.result(), expected)
    for answer in bad:
        with pytest.raises(InvalidImageError, match="not an image of a known format"):
            answer.result()
    for answer in wrong:
        with pytest.raises(RcnnError, match="detections_per_img"):
            answer.result()


def test_pixels_go_in_as_they_are(server: RunningServer, fused: Detector) -> None:
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB").resize((416, 320))) for path in PICTURES])
    given = triton.InferInput("pixels", pixels.shape, "UINT8")
    given.set_data_from_numpy(pixels)
    with triton.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer("digits_fused", [given], client_timeout=60)
        with pytest.raises(triton.InferenceServerException, match="send either image"):
            both = triton.InferInput("image", [len(pixels), 1], "BYTES")
            both.set_data_from_numpy(np.array([[b""]] * len(pixels), object))
            client.infer("digits_fused", [given, both], client_timeout=60)
    for index, picture in enumerate(pixels):
        count = answer.as_numpy("num_detections")[index, 0]
        expected = fused.detect(picture)
        np.testing.assert_allclose(answer.as_numpy("boxes")[index, :count], expected.boxes, atol=1e-2)


def test_under_the_detector_s_own_name(digits_repository: Path, expected: list[Detections]) -> None:
    """With ``--fused on``, clients of the detector and of its pixels model need no change."""
    picture = np.asarray(Image.open(PICTURES[0]).convert("RGB"))
    with running_server(digits_repository, ["digits"], fused="on") as server:
        assert server.models and server.models.served == ["digits", "digits_pixels"]
        assert [stub.model for stub in find_stubs(server.process.pid).values()] == ["digits"]  # one process
        assert server.notes == ["digits is served by digits_fused: one process, faster than the steps"]
        with Detector(server.grpc_url, "digits") as detector:
            for path, answer in zip(PICTURES, expected, strict=True):
                assert_same(detector.detect(path), answer)
            of_pixels = detector.detect(picture)
        with triton.InferenceServerClient(server.grpc_url) as client:
            given = triton.InferInput("pixels", [1, *picture.shape], "UINT8")
            given.set_data_from_numpy(picture[None])
            boxes = client.infer("digits_pixels", [given], client_timeout=60).as_numpy("boxes")
            with pytest.raises(triton.InferenceServerException, match="restricted"):
                client.unload_model("digits")
        np.testing.assert_allclose(boxes[0, : len(of_pixels)], of_pixels.boxes, atol=1e-2)
    assert server.process.returncode == 0


def test_a_detector_without_its_fused_model_is_reported(digits_repository: Path, tmp_path: Path) -> None:
    for path in digits_repository.iterdir():
        if path.name != "digits_fused":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(RepositoryError, match="--fused on needs digits_fused, which is missing"):
        running_server(tmp_path, ["digits"], fused="on").__enter__()


def test_it_is_served_when_it_is_named(digits_repository: Path, tmp_path: Path) -> None:
    selection = select_models(digits_repository)
    assert "digits_fused" not in selection.served
    assert selection.skipped["digits_fused"].endswith("to serve it, give --models digits_fused")
    assert select_models(digits_repository, ["digits_fused"]).served == ["digits_fused"]
    for path in digits_repository.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "digits_rpn").unlink()
    with pytest.raises(Exception, match=r"digits_fused: missing digits_rpn/config\.pbtxt"):
        select_models(tmp_path, ["digits_fused"])
