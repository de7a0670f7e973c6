"""Exports the samples' Faster R-CNN and Mask R-CNN for every engine at the same time."""

import subprocess
import sys
from pathlib import Path

MAIN = "import sys; from rcnn_export.commands.export import main; sys.exit(main())"
SAMPLES = Path(__file__).resolve().parents[2] / "export" / "samples"
DETECTORS = {"boxes": "digits", "masks": "digits_mask"}  # name in the repository -> sample


class Exports:
    """Starts an export process for each detector and engine.

    Args:
        folder: an empty folder.
        precisions: the precision for each engine.
    """

    def __init__(self, folder: Path, precisions: dict[str, str]) -> None:
        self._folder = folder
        self._processes = {
            (engine, name): self._start(engine, precision, name)
            for engine, precision in precisions.items()
            for name in DETECTORS
        }

    def repository(self, engine: str) -> Path:
        """Waits for the exports for an engine; returns its model repository, which has both detectors."""
        both = self._folder / engine / "models"
        both.mkdir(exist_ok=True)
        for name in DETECTORS:
            log = self._folder / engine / f"{name}.log"
            assert self._processes[engine, name].wait() == 0, log.read_text(errors="replace")
            for model in (self._folder / engine / name).iterdir():
                model.rename(both / model.name)
        return both

    def wait(self) -> None:
        """Waits until all processes have ended."""
        for process in self._processes.values():
            process.wait()

    def stop(self) -> None:
        """Ends the processes that are still running."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _start(self, engine: str, precision: str, name: str) -> subprocess.Popen[bytes]:
        folder, sample = self._folder / engine, DETECTORS[name]
        folder.mkdir(exist_ok=True)
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
