"""Runs a served detector under load: no error may occur, and the memory of the GPU and of each process must stay flat.

    python tests/benchmarks/gpu_memory.py --repository repository --name my_detector_fused --seconds 600

The pictures have the benchmark's size and two others, so that batches have several shapes.
"""

import argparse
import io
import shlex
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from memory import Memory
from PIL import Image
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_client import Detector, RcnnError
from rich.console import Console

PICTURES = Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures"
REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
SIZES = [(1333, 800), (800, 1333), (1066, 800)]


def main() -> int:
    """Prints the memory over time; returns 0 if it is flat after ``--settled-s`` and every request was answered."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--name", default="digits_fused")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--settled-s", type=float, default=60)
    options = parser.parse_args()
    console = Console(width=160)
    with running_server(options.repository, [options.name]) as server:
        with Memory(server, max(0.1, options.seconds / 120)) as memory:
            answers = run_load(server, options)
        console.print(memory.table())
    grown = memory.grown(options.settled_s)
    console.print(f"{answers.total()} requests: {dict(answers)}", *grown, sep="\n", markup=False)
    console.print(f"command: python {shlex.join(sys.argv)}", markup=False, soft_wrap=True)
    return 1 if grown or set(answers) != {"boxes"} else 0


def run_load(server: RunningServer, options: argparse.Namespace) -> Counter[str]:
    """The number of requests for each kind of answer."""
    answers: Counter[str] = Counter()
    pictures = encode_pictures()
    until = time.monotonic() + options.seconds

    def ask(client: int) -> None:
        with Detector(server.grpc_url, options.name, retries=0) as detector:
            turn = client
            while time.monotonic() < until:
                turn += 5
                try:
                    detector.detect(pictures[turn % len(pictures)])
                    answers["boxes"] += 1
                except RcnnError as error:
                    answers[str(error)] += 1

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(options.clients)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return answers


def encode_pictures() -> list[bytes]:
    """The sample pictures in each of the sizes, as JPEGs."""
    encoded = []
    for path in sorted(PICTURES.glob("*.jpg")):
        for size in SIZES:
            buffer = io.BytesIO()
            Image.open(path).convert("RGB").resize(size).save(buffer, "JPEG", quality=90)
            encoded.append(buffer.getvalue())
    return encoded


if __name__ == "__main__":
    sys.exit(main())
