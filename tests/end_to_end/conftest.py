"""The sample detector on the real tritonserver, both of its ensembles, and pictures for it."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rcnn_backend.local_server import RunningServer, running_server
from rcnn_client import Detections, Detector

PICTURES = Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures"


@pytest.fixture(scope="module")
def both_ensembles(digits_repository: Path) -> Iterator[RunningServer]:
    """A server of ``digits`` and ``digits_pixels``; mark its users xdist_group("digits")."""
    with running_server(digits_repository, ["digits", "digits_pixels"]) as running:
        yield running


@pytest.fixture(scope="session")
def strips() -> list[np.ndarray]:
    """Twelve thin parts of the sample pictures: quick to detect in, of two sizes, each unlike the others."""
    parts = []
    for path in sorted(PICTURES.glob("*.jpg")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        parts += [pixels[top : top + 30, :330] for top in (60, 150)] + [pixels[200:230, :300]]
    return [np.ascontiguousarray(part) for part in parts]


@pytest.fixture(scope="module")
def expected(both_ensembles: RunningServer, strips: list[np.ndarray]) -> list[Detections]:
    """Each strip's answer at score_thresh 0 (so that one without a digit has boxes, too), sent as a PNG."""
    encoded = []
    for strip in strips:
        buffer = io.BytesIO()
        Image.fromarray(strip).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    with Detector(both_ensembles.grpc_url, "digits") as detector:
        return [detector.detect(data, score_thresh=0.0) for data in encoded]
