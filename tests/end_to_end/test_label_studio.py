"""The real Label Studio, in an environment of its own: its tasks get predictions from the served sample detector.

Its package needs NumPy 2, so `label_studio_client.py` runs in that environment.
"""

import base64
import json
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rcnn_backend.server.local_server import RunningServer
from rcnn_client import Detections, Detector
from rcnn_client._masks import MaskCrop
from rcnn_client.ui.label_studio.brush import encode_brush
from rcnn_client.ui.label_studio.config import KINDS, Control
from rcnn_client.ui.label_studio.regions import make_regions

from .conftest import PICTURES

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.xdist_group("client")]

ROOT = Path(__file__).resolve().parents[2]
USER = ["someone@example.com", "a long password"]
START_S = 400


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs of an environment for Label Studio."""
    folder = tmp_path_factory.mktemp("label_studio") / "venv"
    uv = [str(Path(sys.executable).with_name("uv"))]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    install = [*uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python")]
    subprocess.run([*install, "label-studio==1.23.2", "label-studio-sdk==2.1.2"], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def ask(environment: Path) -> Callable[..., Any]:
    """ask(command, *arguments, given): the output of `label_studio_client.py`, which reads `given` as JSON."""

    def run(*arguments: str, given: Any = None) -> Any:
        command = [environment / "python", Path(__file__).with_name("label_studio_client.py"), *arguments]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def readme_lines() -> list[str]:
    """The two lines of the README that start Label Studio and rcnn-ui."""
    readme = (ROOT / "client" / "README.md").read_text()
    found = re.search(r"^```sh labelstudio\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert found
    return found[1].splitlines()


def free_port() -> int:
    """A free port, which no other program is given while Label Studio starts: the system assigns higher ports."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", random.randrange(15000, 30000))) as free:
            return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def label_studio(
    environment: Path, readme_lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a Label Studio with one user, started as the README says."""
    folder = tmp_path_factory.mktemp("data")
    port = free_port()
    *variables, _, command = shlex.split(readme_lines[0])
    assert command == "start"
    quiet = {"SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "", "COLLECT_ANALYTICS": "false"}
    settings = os.environ | quiet | dict(each.split("=") for each in variables)
    settings |= {"LABEL_STUDIO_BASE_DATA_DIR": str(folder), "LATEST_VERSION_CHECK": "false"}
    arguments = ["start", "--no-browser", "--port", str(port), "--username", USER[0], "--password", USER[1]]
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(
            [environment / "label-studio", *arguments], env=settings, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + START_S
            while time.monotonic() < deadline and running.poll() is None:
                with suppress(OSError), urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5):
                    break
                time.sleep(0.5)
            else:
                pytest.fail((folder / "log").read_text()[-2000:])
            yield f"http://localhost:{port}"
        finally:
            running.terminate()
            running.wait(30)


def test_its_own_code_finds_nothing_wrong(ask: Callable[..., Any]) -> None:
    generator = np.random.default_rng(0)
    shapes = [(1, 1), (3, 5), (40, 31), (300, 400)]
    masks = [generator.random(shape) < 0.4 for shape in shapes] + [np.ones((300, 400), bool)]
    masks[3][50:250] = True
    kinds = {"rectanglelabels": "dog", "brushlabels": "dog", "polygonlabels": "dog", "keypointlabels": "nose"}
    controls = [
        Control(kind, kind, "photo", "url", {label: "it"}, 0.5, None) for kind, label in kinds.items()
    ]
    probabilities = np.ones((1, 28, 28), np.float16)
    one = np.ones((1, 2), np.float32)
    found = Detections(
        np.array([[3, 4, 90, 80]], np.float32),
        np.array([0.9], np.float32),
        np.array([1]),
        ["dog"],
        probabilities,
        (100, 120),
        keypoints=np.array([[[5, 6, 1], [119, 100, 1]]], np.float32),
        keypoint_scores=one,
        keypoint_names=["nose", "tail"],
    )
    regions = make_regions(found, controls, (100, 120))
    assert {region["type"] for region in regions} == set(kinds)
    tags = [
        f'<{kind} name="{kind.lower()}" toName="photo"><Label value="other" alias="it"/></{kind}>'
        for kind in KINDS
    ]
    given = {
        "config": f'<View><Image name="photo" value="$url"/>{"".join(tags)}</View>',
        "prediction": {"model_version": "1", "score": 0.9, "result": regions},
        "codes": [encode_brush(MaskCrop(mask, 0, 0), mask.shape) for mask in masks],
        "masks": [mask.astype(int).tolist() for mask in masks],
    }
    assert ask("check", given=given) == []
    given["prediction"]["result"][0]["value"]["rectanglelabels"] = ["another"]
    given["codes"][0][-2] ^= 255
    assert len(ask("check", given=given)) >= 2  # the check finds errors


def test_a_project_gets_predictions(
    label_studio: str,
    ask: Callable[..., Any],
    readme_lines: list[str],
    both_ensembles: RunningServer,
    start_ui: Callable[..., str],
    tmp_path: Path,
) -> None:
    personal = ask("token", label_studio, *USER)
    (tmp_path / "label-studio.token").write_text(personal)
    (tmp_path / "token").write_text("of rcnn-ui".replace(" ", "-"))
    arguments = readme_lines[1].replace("http://localhost:8080", label_studio)
    arguments = arguments.replace("label-studio.token", str(tmp_path / "label-studio.token"))
    program, port, _, *rest = shlex.split(arguments)
    assert (program, port) == ("rcnn-ui", "--port")
    ui = start_ui(both_ensembles.grpc_url, *rest, "--token-file", str(tmp_path / "token"))

    labels = "".join(f'<Label value="{digit}"/>' for digit in range(9))
    config = f"""<View><Image name="photo" value="$image"/><RectangleLabels name="box" toName="photo">
        {labels}<Label value="Neuf" predicted_values="9"/></RectangleLabels></View>"""
    pictures = sorted(PICTURES.glob("*.jpg"))[:3]
    uri = f"data:image/jpeg;base64,{base64.b64encode(pictures[0].read_bytes()).decode()}"
    places = [*map(str, pictures), uri, "http://169.254.169.254/latest/meta-data"]
    model = f"{ui}/label-studio/digits"
    *answered, refused = ask("predict", label_studio, personal, model, "of-rcnn-ui", config, *places)
    assert refused == []  # the refused picture does not affect the others

    with Detector(both_ensembles.grpc_url, "digits") as detector:
        expected = [detector.detect(path, score_thresh=0.5) for path in [*pictures, pictures[0]]]
    for predictions, found in zip(answered, expected, strict=True):
        ((version, score, regions),) = predictions
        assert version == "digits 1" and score == pytest.approx(found.scores.mean(), abs=1e-4)
        names = [name.replace("9", "Neuf") for name in found.class_names]
        assert [region["value"]["rectanglelabels"] for region in regions] == [[name] for name in names]
        for region, box in zip(regions, found.boxes, strict=True):
            size = np.array([region["original_width"], region["original_height"]])
            corner = np.array([region["value"]["x"], region["value"]["y"]]) * size / 100
            extent = np.array([region["value"]["width"], region["value"]["height"]]) * size / 100
            np.testing.assert_allclose(np.concatenate((corner, corner + extent)), box, atol=1e-2)
