"""Clients that send requests without a pause: every answer must be right or an error, and memory must stay flat.

    python tests/benchmarks/soak.py --seconds 60 --clients 16 [tritonserver's flags]

For the first half of ``--settled-s`` every request is a full batch, so that the most memory is needed early. Each answer
is compared with the one that a server without those flags gives to the same picture without other load. Memory: the
resident memory of the server's processes and the memory in use on the GPUs must not grow after ``--settled-s``.
"""

import argparse
import platform
import shlex
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from memory import Memory
from pictures import SCORE_THRESH, ask_alone, encode_pictures, is_same
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_client import Detections, Detector, RcnnError
from rich.console import Console

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"


def main() -> int:
    """Prints a summary of the answers and the memory over time; returns 0 if nothing failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--settled-s", type=float, default=20)
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--name", default="digits")
    parser.add_argument("--errors-allowed", action="store_true", help="do not fail because of errors")
    options, flags = parser.parse_known_args()
    console = Console(width=160)
    pictures = encode_pictures()
    with running_server(options.repository, [options.name]) as server:
        expected = ask_alone(server.grpc_url, options.name, pictures)
        if not flags:
            load, memory = run_load(server, options, pictures, expected)
    if flags:
        with running_server(options.repository, [options.name], flags=flags) as server:
            load, memory = run_load(server, options, pictures, expected)
    console.print(memory.table())
    console.print(
        f"{load.right} right answers ({load.right / options.seconds:.0f} a second), {load.wrong} wrong, "
        f"{load.errors.total()} errors"
    )
    for message, count in load.errors.most_common(5):
        console.print(f"  {count} x {message}", markup=False, soft_wrap=True)
    grown = memory.grown(options.settled_s)
    for line in grown:
        console.print(line)
    console.print(
        f"Python {platform.python_version()}; command: python {shlex.join(sys.argv)}",
        markup=False,
        soft_wrap=True,
    )
    failed = load.wrong or not load.right + load.errors.total() or grown
    return 1 if failed or (load.errors and not options.errors_allowed) else 0


@dataclass
class Load:
    """Counts the clients' answers."""

    right: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def failed(self, message: str) -> None:
        """Counts an error."""
        with self.lock:
            self.errors[message] += 1


def run_load(
    server: RunningServer, options: argparse.Namespace, pictures: list[bytes], expected: list[Detections]
) -> tuple[Load, Memory]:
    """All clients send requests at the same time, each its own sequence of pictures, until the time is over."""
    load, started = Load(), time.monotonic()
    full_batches_s = min(options.settled_s, options.seconds) / 2

    def ask(client: int) -> None:
        send_full_batches(server, options.name, pictures, started + full_batches_s, load)
        with Detector(server.grpc_url, options.name, retries=0) as detector:
            turn = client
            while time.monotonic() < started + options.seconds:
                index, turn = turn % len(pictures), turn + 5
                try:
                    answer = detector.detect(pictures[index], score_thresh=SCORE_THRESH)
                except RcnnError as error:
                    load.failed(str(error))
                else:
                    with load.lock:
                        if is_same(answer, expected[index]):
                            load.right += 1
                        else:
                            load.wrong += 1

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(options.clients)]
    with Memory(server, min(5.0, options.seconds / 20)) as memory:
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    return load, memory


def send_full_batches(
    server: RunningServer, name: str, pictures: list[bytes], until: float, load: Load
) -> None:
    """Sends requests with eight pictures each."""
    batch = triton.InferInput("image", [8, 1], "BYTES")
    batch.set_data_from_numpy(np.array(pictures[:8], object)[:, None])
    with triton.InferenceServerClient(server.grpc_url) as client:
        while time.monotonic() < until:
            try:
                client.infer(name, [batch])
            except triton.InferenceServerException as error:
                load.failed(error.message())


if __name__ == "__main__":
    sys.exit(main())
