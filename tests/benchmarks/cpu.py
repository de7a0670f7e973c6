"""Served latency beside torchvision eager in process: same picture, same threads, one run.

    python tests/benchmarks/cpu.py

The two take turns, request by request, so that whatever else the machine does meets both.
"""

import argparse
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
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.server.local_server import running_server
from rcnn_client import Detector as Client
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.repository.write import export_repository
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

SAMPLES = Path(__file__).resolve().parents[2] / "export" / "samples"
DIGITS = "rcnn_export.digits.detector:digits_detector"


def main() -> int:
    """Prints a table: for each detector the p50 of torchvision in process and of the server."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30, help="timed requests for each (default: 30)")
    parser.add_argument("--models", nargs="+", default=["digits", "fasterrcnn_resnet50_fpn"])
    arguments = parser.parse_args()
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    photo = Image.fromarray(load_sample_images().images[0]).resize((800, 608))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=90)

    table = Table(title=f"p50 of {arguments.repeats} requests, one client, 608x800 JPEG, {threads} threads")
    for column in ("detector", "torchvision eager, in process", "served by tritonserver", "served / eager"):
        table.add_column(column, justify="left" if column == "detector" else "right")
    for name in arguments.models:
        detector = load(name)
        with tempfile.TemporaryDirectory() as folder:
            export_repository(detector, Path(folder), name)
            eager_ms, served_ms = measure(detector, Path(folder), name, buffer.getvalue(), arguments.repeats)
        table.add_row(name, f"{eager_ms:.0f} ms", f"{served_ms:.0f} ms", f"{served_ms / eager_ms:.2f}")
    console = Console()
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
    detector: Detector, repository: Path, name: str, data: bytes, repeats: int
) -> tuple[float, float]:
    """Medians in milliseconds from encoded bytes to boxes: torchvision's and the server's."""
    with running_server(repository, [name]) as server, Client(server.grpc_url, name) as client:

        def eager() -> object:
            pixels = torch.from_numpy(np.array(decode_image(data, 10**8))).permute(2, 0, 1) / 255
            with torch.inference_mode():
                return detector.model([pixels])

        def served() -> object:
            return client.detect(data)

        for _ in range(3):
            eager(), served()
        turns = [(timed(eager), timed(served)) for _ in range(repeats)]
    eager_ms, served_ms = (statistics.median(times) for times in zip(*turns, strict=True))
    return eager_ms, served_ms


def timed(call: Callable[[], object]) -> float:
    """Milliseconds one call takes."""
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
