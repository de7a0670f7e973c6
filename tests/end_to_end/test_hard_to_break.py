"""The served ensemble under overload and hostile input, and its metrics."""

import http.client
import importlib
import re
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_client import Detector, InvalidImageError, RcnnError, ServerUnavailableError

pytestmark = pytest.mark.xdist_group("server")

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PICTURE = next((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))


def metrics(server: RunningServer) -> dict[str, float]:
    """Every time series of this project, by its name with the labels."""
    connection = http.client.HTTPConnection(server.urls["metrics"])
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {name: float(value) for name, value in re.findall(r"^(rcnn_\S+) (\S+)$", text, re.M)}


def test_fuzzed_requests_get_boxes_or_invalid_argument(
    both_ensembles: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    fuzz = importlib.import_module("fuzz")
    answers, faults = fuzz.send_pictures(both_ensembles, "digits", range(250))
    assert not faults
    assert answers.total() == 250
    assert min(answers["boxes"], answers["InvalidImageError"]) > 50
    answers, faults = fuzz.send_requests(both_ensembles, "digits", range(100))
    assert not faults
    assert min(answers["boxes"], answers["INVALID_ARGUMENT"]) > 5
    assert fuzz.is_ready(both_ensembles)


def test_metrics_count_what_was_found_and_what_was_refused(both_ensembles: RunningServer) -> None:
    before = metrics(both_ensembles)
    with Detector(both_ensembles.grpc_url, "digits") as detector:
        found = [len(detector.detect(PICTURE)), len(detector.detect(PICTURE, score_thresh=1.0))]
        for data in (b"", b"no picture", PICTURE.read_bytes()[:3000]):
            with pytest.raises(InvalidImageError):
                detector.detect(data)
    gained = {name: value - before.get(name, 0) for name, value in metrics(both_ensembles).items()}
    assert gained['rcnn_detections_per_image_count{model="digits_detections"}'] == 2
    assert gained['rcnn_detections_per_image_sum{model="digits_detections"}'] == sum(found) > 0
    assert gained['rcnn_detections_per_image_bucket{model="digits_detections",le="0"}'] == 1
    assert gained['rcnn_proposals_per_image_count{model="digits_proposals"}'] == 2
    assert gained['rcnn_proposals_per_image_sum{model="digits_proposals"}'] > sum(found)
    for reason in ("empty", "unknown_format", "damaged"):
        assert gained[f'rcnn_rejected_requests_total{{model="digits_preprocess",reason="{reason}"}}'] == 1
    for step, executions in {"preprocess": 5, "rpn": 2, "proposals": 2, "header": 2, "detections": 2}.items():
        assert gained[f'rcnn_execution_seconds_count{{model="digits_{step}"}}'] == executions
        assert gained[f'rcnn_execution_seconds_sum{{model="digits_{step}"}}'] > 0


@pytest.mark.parametrize("narrow_step", ["preprocess", "rpn", "detections"])
def test_too_many_requests_are_refused_at_once_and_the_server_recovers(
    digits_repository: Path, tmp_path: Path, narrow_step: str
) -> None:
    repository = tmp_path / "models"
    shutil.copytree(digits_repository, repository)
    config = repository / f"digits_{narrow_step}" / "config.pbtxt"
    text = config.read_text()
    narrow, changed = re.subn(r"max_queue_size: \d+", "max_queue_size: 1", text)
    assert changed == 1
    config.write_text(narrow)
    answers: Counter[str] = Counter()
    waits_s = []

    def ask() -> None:
        with Detector(server.grpc_url, "digits", retries=0, timeout_s=30) as detector:
            for _ in range(3):
                began = time.monotonic()
                try:
                    detector.detect(PICTURE)
                    answers["boxes"] += 1
                except ServerUnavailableError as error:
                    assert "Exceeds maximum queue size" in str(error)
                    answers["refused"] += 1
                except RcnnError as error:
                    answers[repr(error)] += 1
                waits_s.append(time.monotonic() - began)

    with running_server(repository, ["digits"]) as server:
        clients = [threading.Thread(target=ask) for _ in range(24)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert set(answers) <= {"boxes", "refused"} and answers["boxes"] > 3
        assert answers["refused"] or narrow_step == "detections"  # its queue is seldom full
        assert max(waits_s) < 20
        with Detector(server.grpc_url, "digits", retries=0) as detector:
            assert len(detector.detect(PICTURE))


def test_requests_do_not_wait_longer_than_the_config_permits(digits_repository: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    shutil.copytree(digits_repository, repository)
    for config in repository.glob("*/config.pbtxt"):
        config.write_text(config.read_text().replace("microseconds: 30000000", "microseconds: 100000"))
    with running_server(repository, ["digits"]) as server:
        with Detector(server.grpc_url, "digits", retries=0, timeout_s=30) as detector:
            results = list(detector.detect_stream([PICTURE] * 40, in_flight=30))
        errors = Counter(str(result.error) for result in results if result.error)
        assert len(errors) < 40 and all("Request timeout expired" in error for error in errors)
        with Detector(server.grpc_url, "digits", retries=0) as detector:
            assert len(detector.detect(PICTURE))
        assert errors
