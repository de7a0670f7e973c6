"""The parts of rcnn-eval and rcnn-perf that need no server, and the packages that they may import."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from rcnn_client import Detections, TLSConfig
from rcnn_client.tools.coco_file import Category, match_classes
from rcnn_client.tools.differences import difference
from rcnn_client.tools.endpoint import Endpoint
from rcnn_client.tools.eval_cli import parse_against


def test_classes_are_matched_by_name():
    categories = [Category(1, "person", is_used=True), Category(44, "bottle", is_used=True)]
    assert match_classes(["bottle", "person", "N/A", "bottle"], categories) == {1: 1, 3: 44}


def test_against_names_a_server_a_model_or_both():
    first = Endpoint("a:1", "one")
    assert parse_against("b:2/two", first) == Endpoint("b:2", "two")
    assert parse_against("b:2", first) == Endpoint("b:2", "one")
    assert parse_against("two", first) == Endpoint("a:1", "two")
    encrypted = Endpoint("a:1", "one", TLSConfig("ca.pem"), {"token": "secret"})
    assert parse_against("b:2", encrypted) == replace(encrypted, url="b:2")


def detections(*rows):
    """Detections from rows of box, score and class name."""
    boxes, scores, names = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.ones(len(rows), np.int64),
        list(names),
    )


def test_difference_by_hand():
    cat = ((0, 0, 10, 10), 0.9, "cat")
    same = difference(detections(cat), detections(cat))
    assert (same.total, same.only_first, same.only_second, same.largest_shift_px) == (0, 0, 0, 0)
    # A dog at the place of the cat is no counterpart, and neither is a cat with an IoU of 1/3.
    for other in (((0, 0, 10, 10), 0.9, "dog"), ((5, 0, 15, 10), 0.9, "cat")):
        apart = difference(detections(cat), detections(other))
        assert (apart.total, apart.only_first, apart.only_second) == (2, 1, 1)
    # The nearer of the two is the counterpart, with an IoU of 80/100; the other one has no counterpart.
    two = detections(((0, 0, 6, 10), 0.95, "cat"), ((0, 0, 10, 8), 0.6, "cat"))
    near = difference(detections(cat), two)
    assert (near.total, near.only_second) == (pytest.approx(1.2), 1)
    assert near.largest_shift_px == pytest.approx(2)
    # A counterpart may have a low score. Boxes with a low score and without a counterpart do not count.
    low = detections(((0, 0, 10, 10), 0.4, "cat"), ((50, 50, 60, 60), 0.4, "cat"))
    assert difference(detections(cat), low).total == 0
    assert difference(detections(), detections(cat)).total == 1
    assert difference(detections(), detections()).total == 0


@pytest.mark.parametrize(
    ("command", "package"), [("eval", "pycocotools"), ("eval", "matplotlib"), ("perf", "rich")]
)
def test_a_missing_extra_is_one_line(command, package, tmp_path):
    arguments = ["instances.json", str(tmp_path)][command == "perf" :]
    code = (
        f"import sys; sys.argv[1:] = {arguments}; sys.modules[{package!r}] = None; "
        f"from rcnn_client.tools import rcnn_{command}; sys.exit(rcnn_{command}())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"rcnn-{command}: {package} is not installed; install what this command needs with "
        f"pip install 'rcnn-client[{command}]'\n"
    )


def test_the_tools_import_nothing_heavy():
    code = "import sys, rcnn_client.tools.eval_cli, rcnn_client.tools.perf_cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "onnx", "onnxruntime", "rcnn_backend", "rcnn_export"} & set(modules.split())
    light = "import sys, rcnn_client, rcnn_client.tools.detect_cli, rcnn_client.tools; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True).stdout
    assert not {"pycocotools", "matplotlib"} & set(modules.split())
