"""Exports the samples' Faster R-CNN and Mask R-CNN at the same time."""

import subprocess
import sys
from pathlib import Path

MAIN = "import sys; from rcnn_export.commands.export import main; sys.exit(main())"
SAMPLES = Path(__file__).resolve().parents[2] / "export" / "samples"
DETECTORS = {"boxes": "digits", "masks": "digits_mask"}  # name in the repository -> sample


def export_samples(folder: Path, engine: str, precision: str) -> Path:
    """A model repository with both detectors, in an empty folder."""
    processes = {name: _start(folder, engine, precision, name) for name in DETECTORS}
    codes = {name: process.wait() for name, process in processes.items()}
    both = folder / "models"
    both.mkdir()
    for name, code in codes.items():
        assert code == 0, (folder / f"{name}.log").read_text(errors="replace")
        for model in (folder / name).iterdir():
            model.rename(both / model.name)
    return both


def _start(folder: Path, engine: str, precision: str, name: str) -> subprocess.Popen[bytes]:
    sample = DETECTORS[name]
    options = {
        "--model": f"rcnn_export.digits.detector:{sample}_detector",
        "--weights": SAMPLES / f"{sample}.safetensors",
        "--labels": SAMPLES / "labels.txt",
        "--name": name,
        "--repository": folder / name,
        "--engine": engine,
        "--precision": precision,
    }
    command = [sys.executable, "-c", MAIN, *(str(word) for option in options.items() for word in option)]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)
