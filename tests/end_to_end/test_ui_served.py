"""rcnn-ui with the real server: its page in a browser, and the commands in the README."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rcnn_backend.server.local_server import RunningServer
from rcnn_client import Detector
from rcnn_client._draw_shapes import class_colour

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("client")]

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "export" / "samples" / "pictures" / "digits_held-out_001117.jpg"
PIXELS = """(canvas) => Array.from(
    canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
)"""


def test_six_digits_are_found_and_drawn(
    both_ensembles: RunningServer, browser: Any, start_ui: Callable[..., str]
) -> None:
    page = browser.new_page()
    page.goto(start_ui(both_ensembles.grpc_url))
    page.set_input_files("#file", str(PICTURE))
    page.wait_for_selector("#rows tr")
    assert page.locator("#rows tr").count() == 6
    canvas = page.locator("#canvas")
    height, width = canvas.evaluate("(canvas) => [canvas.height, canvas.width]")
    drawn = np.array(canvas.evaluate(PIXELS)).reshape(height, width, 4)[..., :3]
    with Detector(both_ensembles.grpc_url, "digits") as detector:
        found = detector.detect(PICTURE, score_thresh=0.5)
    assert len(found) == 6
    for detection in found:
        x1, y1, x2, y2 = np.round(detection.box).astype(int)
        is_line = np.abs(drawn - class_colour(detection.label)).max(axis=2) < 3
        edges = [is_line[y1, x1:x2], is_line[y2 - 1, x1:x2], is_line[y1:y2, x1], is_line[y1:y2, x2 - 1]]
        assert sum(edge.mean() > 0.9 for edge in edges) >= 2  # labels may cover the others
    said = page.inner_text("#timing").split()
    parts = {name: float(said[said.index(name) + 1]) for name in ("Network", "Queue", "Compute")}
    assert min(parts.values()) >= 0 and parts["Compute"] > 1
    assert "digits_rpn" in said
    page.close()


def test_the_lines_of_the_readme(
    both_ensembles: RunningServer, start_ui: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copy(PICTURE, tmp_path / "photo.jpg")
    readme = (ROOT / "client" / "README.md").read_text()
    lines = [line for line in readme.splitlines() if line.startswith("curl") and "127.0.0.1:8080" in line]
    address = start_ui(both_ensembles.grpc_url)
    answers = []
    for line in lines:
        command = line.replace("http://127.0.0.1:8080", address).replace("my_detector", "digits")
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        answers.append(json.loads(done.stdout))
    assert len(answers[0]["detections"]) == 6
    assert len(answers[1]["detections"]) == 1 and answers[1]["timing"]["compute_ms"] > 0
    assert answers[2]["info"]["title"] == "rcnn-ui"
