"""client/README.md: its examples run, and its reference matches the docstrings."""

import copy
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import rcnn_client
from PIL import Image

CLIENT = Path(__file__).parents[2] / "client"


@pytest.fixture
def readme() -> str:
    return (CLIENT / "README.md").read_text()


def test_the_reference_is_up_to_date(readme, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    spec = importlib.util.spec_from_file_location("reference", CLIENT / "reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert readme == reference.write(readme), "run `make docs`"
    for name in rcnn_client.__all__:
        assert f"`{name}`" in readme or f"### {name}\n" in readme
    for name in rcnn_client.DetectOptions.__annotations__:
        assert f"- `{name}`: " in readme


def test_every_environment_variable_is_named(readme):
    source = "".join(path.read_text() for path in (CLIENT / "rcnn_client").rglob("*.py"))
    read = set(re.findall(r"environ\.get\(\"(\w+)\"|environ\[\"(\w+)\"|getenv\(\"(\w+)\"", source))
    assert read
    for name in ("".join(groups) for groups in read):
        assert f"`{name}`" in readme


def test_the_examples_run(readme, server, png, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (320, 240), (5, 5, 5)).save("photo.jpg", quality=100)
    (tmp_path / "photos" / "other.jpg").write_bytes(png(7))
    for name in ("my_detector", "my_mask_rcnn", "my_keypoint_rcnn"):
        server.configs[name] = copy.deepcopy(server.configs["faster_rcnn"])
    server.add_masks(["my_mask_rcnn"])
    server.add_keypoints(17, models=["my_keypoint_rcnn"])

    supervision = ModuleType("supervision")
    supervision.Detections = SimpleNamespace
    supervision.BoxAnnotator = lambda: SimpleNamespace(annotate=lambda scene, detections: scene)
    monkeypatch.setitem(sys.modules, "supervision", supervision)
    for name in ("ca", "own"):
        (tmp_path / f"{name}.pem").touch()

    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    *blocks, servers = blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("localhost:8001", server.url), names)
    with pytest.raises(rcnn_client.InvalidParameterError, match="expected PEM files"):
        exec(servers, names)
    out = capsys.readouterr().out
    assert out.startswith("<2 detections: class 5 0.90 at 0,0,320,240; class 5 0.60 at ")
    assert out.endswith("photos/other.jpg 3\n")
    assert (tmp_path / "boxed.png").exists()
