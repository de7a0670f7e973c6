"""Fixtures that several folders share."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from rcnn_backend.contract.manifest import PlanOptions
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.engines.options import TENSORRT, EngineOptions
from rcnn_export.engines.plan_shapes import parse_shapes, plan_profiles
from rcnn_export.engines.precision import FP16
from rcnn_export.repository.write import export_repository

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "export" / "samples"

# A background job of a shell ignores SIGINT, and the commands that tests start and interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def digits() -> Detector:
    """The sample detector with its committed weights."""
    return load_detector(
        "rcnn_export.digits.detector:digits_detector",
        str(SAMPLES / "digits.safetensors"),
        labels=SAMPLES / "labels.txt",
    )


@pytest.fixture(scope="session")
def digits_repository(digits: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample detector exported under the name ``digits``. Mark tests that use it with the xdist_group
    of their folder.
    """
    repository = tmp_path_factory.mktemp("repository")
    export_repository(digits, repository, "digits")
    return repository


@pytest.fixture(scope="session")
def plan_repository(digits: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample detector in FP16, exported as TensorRT-RTX plans and as ONNX under the name ``digits``.

    The RPN has one profile for small and one for large pictures. Mark tests that use it xdist_group("export").
    """
    repository = tmp_path_factory.mktemp("plans")
    shapes = [parse_shapes("1x32x32,4x320x320,8x384x384"), parse_shapes("1x416x32,4x416x768,8x768x768")]
    plan = PlanOptions(compute_capabilities=("8.0", "8.6", "8.9", "12.0"))
    options = EngineOptions(TENSORRT, FP16, plan_profiles(digits.model, shapes), plan)
    export_repository(digits, repository, "digits", options=options)
    return repository


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium whose camera shows a test picture. While it runs, `asyncio.run` cannot be used."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium here: apt install chromium")
    with playwright.sync_playwright() as driver:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        yield driver.chromium.launch(executable_path=executable, args=["--no-sandbox", *camera])


@pytest.fixture
def start_ui() -> Iterator[Callable[..., str]]:
    """start_ui(url, *arguments): starts rcnn-ui for the server at `url` and returns the address of its page."""
    with ExitStack() as stack:

        def start(url: str, *arguments: str) -> str:
            code = "import sys, rcnn_client.tools as tools; sys.exit(tools.rcnn_ui())"
            command = [sys.executable, "-c", code, "--url", url, "--port", "0", *arguments]
            running = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            stack.callback(running.terminate)
            said = running.stderr.readline() if running.stderr else ""
            found = re.search(r"http://[\d.]+:\d+", said)
            assert found, said
            return found[0]

        yield start
