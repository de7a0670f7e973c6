"""Clients that send requests to a detector, and the answers that they get."""

import io
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from PIL import Image
from rcnn_backend.pipeline import Pipeline
from rcnn_client import Detections, Detector, RcnnError

PICTURES = sorted((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))
JPEGS = [path.read_bytes() for path in PICTURES]
TIMEOUT_S = 15.0  # per request


def encode_png(path: Path) -> bytes:
    """A picture without loss. Its pixels are the same for every decoder; those of a JPEG may differ by a level."""
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def ask_pipeline(pipeline: Pipeline, encoded: Sequence[bytes]) -> list[SimpleNamespace]:
    """Its answer to each picture, sent alone, with the attributes of ``Detections``."""
    wanted = {tensor.name for tensor in pipeline.chain.answers} - {"rles"}
    answers = []
    for data in encoded:
        arrays = pipeline.detect([data], wanted=wanted).answers
        real = int(arrays["num_detections"][0, 0])
        own = {name: array[0, :real] for name, array in arrays.items() if name != "num_detections"}
        answers.append(SimpleNamespace(**own, mask_probabilities=own.get("masks")))
    return answers


class Clients:
    """Clients that send one picture after another; each stops when one of its requests fails.

    ``answers``: the number of each picture, and the answer to it. ``longest_s``: the time of the longest request.
    """

    def __init__(self, url: str, name: str, encoded: Sequence[bytes], count: int) -> None:
        self.answers: list[tuple[int, Detections]] = []
        self.errors: list[RcnnError] = []
        self.longest_s = 0.0
        self._url, self._name, self._encoded = url, name, encoded
        self._threads = [threading.Thread(target=self._ask, args=(turn,)) for turn in range(count)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Waits until each client has had an error."""
        for thread in self._threads:
            thread.join()

    def _ask(self, turn: int) -> None:
        with Detector(self._url, self._name, retries=0, timeout_s=TIMEOUT_S) as detector:
            while True:
                picture, began = turn % len(self._encoded), time.monotonic()
                turn += 1
                try:
                    self.answers.append((picture, detector.detect(self._encoded[picture])))
                except RcnnError as error:
                    self.errors.append(error)
                    return
                finally:
                    self.longest_s = max(self.longest_s, time.monotonic() - began)
