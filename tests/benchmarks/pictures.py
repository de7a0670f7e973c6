"""The pictures that the load tests send, and the comparison of an answer with the right one."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rcnn_client import Detections, Detector

SAMPLES = Path(__file__).resolve().parents[2] / "export" / "samples"
SIZES = [(416, 320), (320, 416), (400, 300)]
STRIP_PX = 40
BOX_TOLERANCE_PX, SCORE_TOLERANCE = 0.1, 1e-3
SCORE_THRESH = 0.1


def encode_pictures() -> list[bytes]:
    """The sample pictures in several sizes, as JPEG and as PNG."""
    encoded = []
    for path in sorted((SAMPLES / "pictures").glob("*.jpg")):
        for size in SIZES:
            for kind in ("JPEG", "PNG"):
                buffer = io.BytesIO()
                Image.open(path).convert("RGB").resize(size).save(buffer, kind)
                encoded.append(buffer.getvalue())
    return encoded


def encode_strips() -> list[bytes]:
    """Thin strips of the sample pictures, as PNG: detection in them is a few times as fast."""
    encoded = []
    for path in sorted((SAMPLES / "pictures").glob("*.jpg")):
        picture = Image.open(path).convert("RGB")
        for top in range(0, picture.height - STRIP_PX, STRIP_PX):
            buffer = io.BytesIO()
            picture.crop((0, top, picture.width, top + STRIP_PX)).save(buffer, "PNG")
            encoded.append(buffer.getvalue())
    return encoded


def ask_alone(url: str, name: str, pictures: list[bytes]) -> list[Detections]:
    """The answer to each picture, sent one after the other without other load."""
    with Detector(url, name) as detector:
        return [detector.detect(picture, score_thresh=SCORE_THRESH) for picture in pictures]


class Found(NamedTuple):
    """The parts of ``Detections`` that ``is_same`` compares."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def is_same(answer: Detections | Found, expected: Detections | Found) -> bool:
    """Whether both have the same objects, up to rounding, which depends on the other pictures in the batch."""
    return (
        np.array_equal(answer.labels, expected.labels)
        and np.allclose(answer.boxes, expected.boxes, rtol=0, atol=BOX_TOLERANCE_PX)
        and np.allclose(answer.scores, expected.scores, rtol=0, atol=SCORE_TOLERANCE)
    )
