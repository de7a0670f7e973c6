"""Shared memory with the real server: it is used again, and it is removed however the client ends."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from rcnn_backend.server.local_server import RunningServer
from rcnn_client import DeadlineExceededError, Detections, Detector, InvalidImageError, ServerError
from rcnn_client._shm import Region

pytestmark = pytest.mark.xdist_group("client")

PICTURE = next((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))
SHARED = Path("/dev/shm")


def assert_same(ours: Detections, theirs: Detections) -> None:
    assert len(ours) == len(theirs) > 0
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    np.testing.assert_allclose(ours.boxes[:3], theirs.boxes[:3], atol=0.05)


def regions(both_ensembles: RunningServer) -> list[str]:
    """The names of the shared memory regions that the server has open."""
    with triton.InferenceServerClient(both_ensembles.grpc_url) as client:
        return sorted(client.get_system_shared_memory_status().regions)


def left_in_shared_memory() -> list[Path]:
    return list(SHARED.glob("rcnn_client_*"))


def in_another_process(url: str, code: str) -> subprocess.CompletedProcess[str]:
    script = f"""
import os, signal, threading, numpy as np
from rcnn_client import Detector
pixels = np.zeros((30, 330, 3), np.uint8)
detector = Detector({url!r}, "digits", transport="shm")
{code}
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("code", "return_code"),
    [
        ("detector.detect_batch([pixels] * 8)", 0),
        ("with detector: detector.detect(pixels); 1 / 0", 1),
        ("threading.Thread(target=lambda: detector.detect_batch([pixels] * 4) and 1 / 0).start()", 0),
        ("next(detector.detect_stream([pixels] * 8)); os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("next(detector.detect_stream([pixels] * 8)); os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
    ids=["never closed", "exception", "thread that dies", "interrupted", "killed"],
)
def test_no_end_of_the_process_leaves_shared_memory(
    both_ensembles: RunningServer, code: str, return_code: int
) -> None:
    before = regions(both_ensembles)
    done = in_another_process(both_ensembles.grpc_url, code)
    assert done.returncode == return_code, done.stderr
    if return_code == -signal.SIGKILL:  # a region may be left, which the next client removes
        Region(1).unlink()
    assert left_in_shared_memory() == []
    if return_code != -signal.SIGKILL:  # a killed client cannot tell the server to close its regions
        assert regions(both_ensembles) == before
    with Detector(both_ensembles.grpc_url, "digits") as detector:
        assert detector.is_ready()


def test_the_next_client_removes_the_memory_of_a_killed_process() -> None:
    code = "from rcnn_client._shm import Region; import os; Region(10); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert len(left_in_shared_memory()) == 1
    ours = Region(10)
    another = Region(10)
    assert {path.name for path in left_in_shared_memory()} == {ours.name, another.name}
    ours.unlink()
    another.unlink()


def test_shared_memory_ends_with_the_detector(
    strips: list[np.ndarray], both_ensembles: RunningServer
) -> None:
    before = regions(both_ensembles)
    for is_closed in (True, False):
        detector = Detector(both_ensembles.grpc_url, "digits", transport="shm")
        with pytest.raises(DeadlineExceededError):
            detector.detect(strips[0], timeout_s=0.01)
        with pytest.raises(InvalidImageError, match="too elongated"):
            detector.detect(np.zeros((1, 9000, 3), np.uint8))
        detector.detect_batch(strips)
        assert 1 <= len(regions(both_ensembles)) - len(before) <= 16 and left_in_shared_memory() == []
        if is_closed:
            detector.close()
        del detector
        assert regions(both_ensembles) == before


def test_shared_memory_is_reused(
    strips: list[np.ndarray], both_ensembles: RunningServer, expected: list[Detections]
) -> None:
    before = regions(both_ensembles)
    with Detector(both_ensembles.grpc_url, "digits", transport="shm") as detector:
        for index in (0, 3, 2, 5, 0):
            assert_same(detector.detect(strips[index], score_thresh=0.0), expected[index])
        assert len(regions(both_ensembles)) - len(before) == 1


def test_shared_memory_that_is_not_available(
    strips: list[np.ndarray], both_ensembles: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client uses another folder than the server, as in a container of its own, or a folder that does not exist."""
    for folder, message in (
        (tmp_path, "Unable to open shared memory.*on this host"),
        (tmp_path / "none", "No such"),
    ):
        monkeypatch.setattr("rcnn_client._shm.FOLDER", folder)
        with Detector(both_ensembles.grpc_url, "digits", transport="shm") as detector:
            with pytest.raises(ServerError, match=message):
                detector.detect(strips[0])
            assert list(tmp_path.iterdir()) == []
            assert len(detector.detect(PICTURE)) > 0  # encoded pictures need no shared memory
