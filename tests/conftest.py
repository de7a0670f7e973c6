"""Fixtures that several folders share."""

from pathlib import Path

import pytest
from rcnn_export.detector import Detector, load_detector
from rcnn_export.repository import export_repository

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "export" / "samples"


@pytest.fixture(scope="session")
def digits() -> Detector:
    """The sample detector with its committed weights."""
    return load_detector(
        "rcnn_export.digits_detector:digits_detector",
        str(SAMPLES / "digits.safetensors"),
        labels=SAMPLES / "labels.txt",
    )


@pytest.fixture(scope="session")
def digits_repository(digits: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample detector exported under the name ``digits``; mark its users xdist_group("digits")."""
    repository = tmp_path_factory.mktemp("repository")
    export_repository(digits, repository, "digits")
    return repository
