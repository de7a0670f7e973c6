"""Compares served latency with torchvision eager in process: same picture, same threads, one run.

    python tests/benchmarks/cpu.py

The two take turns, request by request, so that other load on the machine affects both equally. Both have the same limit
of detections. Mask R-CNN has two rows: one with masks as 28x28 in the frames of their boxes on both sides, and one with
masks pasted into the picture, by torchvision and by the client.
"""

import argparse
import contextlib
import copy
import io
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torchvision
from PIL import Image
from rcnn_backend.contract.chain import MASKS
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.server.local_server import running_server
from rcnn_client import Detector as Client
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.repository.write import export_repository
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from unpasted import unpasted

SAMPLES = Path(__file__).resolve().parents[2] / "export" / "samples"
DIGITS = "rcnn_export.digits.detector:digits_detector"
MODELS = ("digits", "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")


def main() -> int:
    """Prints a table with the p50 of torchvision in process and of the server for each detector."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=30, help="timed requests for each detector (default: 30)"
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument(
        "--detections", type=int, default=10, help="largest number in the picture (default: 10)"
    )
    arguments = parser.parse_args()
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    photo = Image.fromarray(load_sample_images().images[0]).resize((800, 608))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=90)

    title = f"p50 of {arguments.repeats} requests, one client, 608x800 JPEG, {threads} threads"
    table = Table(title=f"{title}, at most {arguments.detections} detections")
    for column in ("detector", "torchvision eager, in process", "served by tritonserver", "served / eager"):
        table.add_column(column, justify="left" if column == "detector" else "right")
    for name in arguments.models:
        detector = load(name)
        with tempfile.TemporaryDirectory() as folder:
            export_repository(detector, Path(folder), name)
            for pastes in (False, True) if MASKS in detector.chain.answers else (False,):
                eager_ms, served_ms = measure(
                    detector,
                    Path(folder),
                    name,
                    buffer.getvalue(),
                    arguments.repeats,
                    arguments.detections,
                    pastes,
                )
                label = f"{name}, masks pasted" if pastes else name
                table.add_row(
                    label, f"{eager_ms:.0f} ms", f"{served_ms:.0f} ms", f"{served_ms / eager_ms:.2f}"
                )
    console = Console(width=110)
    console.print(table)
    console.print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, ONNX Runtime "
        f"{onnxruntime.__version__}, {platform.machine()}, {platform.python_version()}"
    )
    console.print("command: python", shlex.join(sys.argv))
    return 0


def load(name: str) -> Detector:
    """The sample detector, or a torchvision model with seeded random weights."""
    if name == "digits":
        return load_detector(DIGITS, str(SAMPLES / "digits.safetensors"), labels=SAMPLES / "labels.txt")
    return load_detector(name)


def measure(
    detector: Detector,
    repository: Path,
    name: str,
    data: bytes,
    repeats: int,
    detections: int,
    pastes: bool = False,
) -> tuple[float, float]:
    """Medians in milliseconds from encoded bytes to the answer: torchvision's and the server's.

    Args:
        data: a picture as a client sends it.
        detections: the largest number of detections that it may have.
        pastes: whether masks are pasted into the picture.
    """
    model = copy.deepcopy(detector.model)
    model.roi_heads.detections_per_img = detections
    with running_server(repository, [name]) as server, Client(server.grpc_url, name) as client:

        def eager() -> object:
            pixels = torch.from_numpy(np.array(decode_image(data, 10**8))).permute(2, 0, 1) / 255
            with torch.inference_mode(), contextlib.nullcontext() if pastes else unpasted(model):
                return model([pixels])

        def served() -> object:
            found = client.detect(data, detections_per_img=detections)
            return found.masks() if pastes else found

        for _ in range(3):
            eager(), served()
        turns = [(timed(eager), timed(served)) for _ in range(repeats)]
    eager_ms, served_ms = (statistics.median(times) for times in zip(*turns, strict=True))
    return eager_ms, served_ms


def timed(call: Callable[[], object]) -> float:
    """Milliseconds that one call takes."""
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
