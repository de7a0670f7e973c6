"""A user's project under mypy --strict: the types of the public names, and the mistakes that mypy finds."""

import re
import subprocess
import sys

PROJECT = """
import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rcnn_client import (
    BatchError, Detection, Detections, DetectOptions, Detector, DetectorInfo, ImageInput, RcnnError, Result, TLSConfig,
    aio, draw_detections,
)
from typing_extensions import assert_type


def select(found: Detections) -> list[str]:
    assert_type(found[0], Detection)
    assert_type(found[np.argmax(found.scores)], Detection)
    assert_type(found[:5], Detections)
    assert_type(found[[0, 2]], Detections)
    assert_type(found[found.scores > 0.8], Detections)
    assert_type(found.masks(), NDArray[np.bool_])
    for polygon in found.polygons()[0]:
        assert_type(polygon, NDArray[np.float32])
    for mask, top, left in found.mask_crops(0.4):
        print(mask.shape[0] + top, mask.shape[1] + left, found.rle()[0]["counts"])
    return [f"{each.class_name} {each.score:.2f} {each.box[0]:.0f}" for each in found]


Frame = NDArray[np.integer[Any] | np.floating[Any]]  # as OpenCV's stubs have it


def detect(photos: Iterable[Path], frame: Frame, options: DetectOptions) -> DetectorInfo:
    tls = TLSConfig(ca="ca.pem", cert=Path("own.pem"), key="own.key")
    with Detector(["a:8001", "b:8001"], "mine", tls=tls, headers={"a": "b"}, transport="shm") as detector:
        found = detector.detect("photo.jpg", score_thresh=0.5, classes=["dog"])
        assert_type(detector.detect(frame[:, :, ::-1], **options), Detections)
        assert_type(detector.detect_tiled(Path("a.jpg"), (800, 800), merge="nms", **options), Detections)
        assert_type(draw_detections(b"photo", found), Image.Image)
        try:
            mixed = detector.detect_batch([Path("a.jpg"), "b.jpg", b"c", Image.new("RGB", (3, 3)), frame], in_flight=2)
            assert_type(mixed, list[Detections])
        except BatchError as error:
            assert_type(error.errors, dict[int, RcnnError])
        for result in detector.detect_stream(photos, top_k=3):
            assert_type(result, Result[Path])
            print(result.image.name, result.error or len(result.detections))
        return detector.info()


async def detect_asynchronously(photos: list[ImageInput]) -> None:
    async with aio.Detector() as detector:
        assert_type(await detector.detect_batch(photos, timeout_s=3), list[Detections])
        assert_type(await detector.detect_tiled("a.jpg", [800, 800], 0.3, in_flight=4), Detections)
        async for result in detector.detect_stream(["a.jpg"]):
            print(result.image.upper())


def mistakes(detector: Detector) -> None:
    detector.detect("photo.jpg", threshold=0.5)  # wrong: "threshold"
    detector.detect(5)  # wrong: "int"
    detector.detect_tiled("a.jpg", (800, 800), merge="NMS")  # wrong: "NMS"
    Detector(transport="tcp")  # wrong: "tcp"
    detector.detect("photo.jpg").class_name  # wrong: "class_name"


asyncio.run(detect_asynchronously([]))
"""


def test_a_users_project(tmp_path):
    (tmp_path / "project.py").write_text(PROJECT)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache", "project.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    errors = re.findall(r"^project\.py:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    wrong = {
        number: line.rpartition("# wrong: ")[2]
        for number, line in enumerate(PROJECT.splitlines(), start=1)
        if "# wrong: " in line
    }
    assert [int(line) for line, _ in errors] == list(wrong), done.stdout + done.stderr
    assert all(wrong[int(line)].strip('"') in message for line, message in errors), done.stdout
