"""The client is independent: its wheel works in an environment of its own, without torch, ONNX or CuPy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FOREIGN = {"torch", "torchvision", "onnx", "onnxruntime", "cupy", "tensorrt", "rcnn_backend", "rcnn_export"}


def run(*command: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_the_client_imports_nothing_heavy():
    modules = run(
        sys.executable,
        "-c",
        "import json, sys, rcnn_client.tools.detect_cli; print(json.dumps(list(sys.modules)))",
    )
    assert not FOREIGN & {name.split(".")[0] for name in json.loads(modules)}


@pytest.mark.timeout(600)
def test_the_wheel_works_in_a_clean_environment(server, png, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT / "client")
    (wheel,) = tmp_path.glob("rcnn_client-*.whl")
    run(python, "-m", "pip", "install", "--constraint", ROOT / "constraints.txt", wheel)

    installed = {
        entry["name"].lower() for entry in json.loads(run(python, "-m", "pip", "list", "--format=json"))
    }
    assert "rcnn-client" in installed and not FOREIGN & installed
    location = run(python, "-c", "import rcnn_client; print(rcnn_client.__file__)")
    assert location.startswith(str(tmp_path))
    assert (Path(location).parent / "py.typed").exists()
    assert (Path(location).parent / "ui" / "page" / "index.html").exists()

    (tmp_path / "photo.png").write_bytes(png(5, size=(64, 48)))
    table = run(
        python.with_name("rcnn-detect"),
        tmp_path / "photo.png",
        "--url",
        server.url,
        "--out",
        tmp_path / "boxed.png",
    )
    assert "class 5  0.900" in table
    assert np.asarray(Image.open(tmp_path / "boxed.png")).shape == (48, 64, 3)
