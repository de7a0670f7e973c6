"""The sample detector with both of its ensembles on the real tritonserver, and pictures for it."""

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_client import Detections, Detector

PICTURES = Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures"


@pytest.fixture(scope="module")
def both_ensembles(digits_repository: Path) -> Iterator[RunningServer]:
    """A server of ``digits`` and ``digits_pixels``. Mark tests that use it with the xdist_group of their
    folder.
    """
    with running_server(digits_repository, ["digits", "digits_pixels"]) as running:
        yield running


@pytest.fixture(scope="session")
def strips() -> list[np.ndarray]:
    """Twelve different thin parts of the sample pictures, in two sizes; detection in them is fast."""
    parts = []
    for path in sorted(PICTURES.glob("*.jpg")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        parts += [pixels[top : top + 30, :330] for top in (60, 150)] + [pixels[200:230, :300]]
    return [np.ascontiguousarray(part) for part in parts]


@pytest.fixture(scope="module")
def expected(both_ensembles: RunningServer, strips: list[np.ndarray]) -> list[Detections]:
    """The answer to each strip, sent as a PNG. With score_thresh 0 a strip without a digit has boxes, too."""
    encoded = []
    for strip in strips:
        buffer = io.BytesIO()
        Image.fromarray(strip).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    with Detector(both_ensembles.grpc_url, "digits") as detector:
        return [detector.detect(data, score_thresh=0.0) for data in encoded]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pem and a .key each for server and client, signed by ``ca``, and for stranger, signed by ``other``."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "rsa:2048", "-nodes"]
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for authority, names in {"ca": ["server", "client"], "other": ["stranger"]}.items():
        files = ["-keyout", f"{authority}.key", "-out", f"{authority}.pem"]
        openssl("req", "-x509", *new_key, "-days", "2", "-subj", f"/CN={authority}", *files)
        for name in names:
            openssl("req", *new_key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
            signer = ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial"]
            files = ["-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", "names"]
            openssl("x509", "-req", *signer, "-days", "2", *files)
    return folder
