"""Sends hostile pictures to the served ensemble: each must get boxes or INVALID_ARGUMENT, and memory must stay flat.

    python tests/benchmarks/fuzz.py --inputs 20000

In addition to the pictures, ``--requests`` other requests are sent: pixels, wrong types, wrong shapes, wrong
parameters. The n-th input is the same in every run; ``--first`` is the number of the first one.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from hostile_pictures import hostile_picture
from memory import Memory
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_client import Detector, InvalidImageError
from rich.console import Console

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
GROWTH = 0.1  # the largest pictures for a decoder may come early or late
TYPES = {"UINT8": np.uint8, "INT64": np.int64, "FP32": np.float32, "FP16": np.float16, "BYTES": np.object_}


def main() -> int:
    """Prints a summary of the answers; returns 0 if there were no faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--name", default="digits")
    options = parser.parse_args()
    console = Console(width=160)
    with running_server(options.repository, [options.name]) as server:
        started = time.monotonic()
        with Memory(server, 1.0) as memory:
            answers, faults = send_pictures(
                server, options.name, range(options.first, options.first + options.inputs)
            )
            seconds = time.monotonic() - started
            other, more = send_requests(
                server, options.name, range(options.first, options.first + options.requests)
            )
        ready = is_ready(server)
    console.print(memory.table())
    console.print(
        f"{options.inputs} pictures in {seconds:.0f} s ({options.inputs / seconds:.0f} a second): {dict(answers)}"
    )
    console.print(f"{options.requests} other requests: {dict(other)}")
    faults += more
    for fault in faults[:20]:
        console.print(fault, markup=False)
    grown = memory.grown(seconds / 5, GROWTH)
    console.print(*grown, "ready" if ready else "not ready", sep="\n")
    return 1 if faults or grown or not ready else 0


def send_pictures(server: RunningServer, name: str, numbers: range) -> tuple[Counter[str], list[str]]:
    """The number of answers of each kind, and a line for each answer that is a fault."""
    answers: Counter[str] = Counter()
    faults = []
    with Detector(server.grpc_url, name, retries=0) as detector:
        results = detector.detect_stream(map(hostile_picture, numbers), in_flight=8)
        for number, result in zip(numbers, results, strict=True):
            kind = "boxes" if result.error is None else type(result.error).__name__
            answers[kind] += 1
            if kind not in ("boxes", InvalidImageError.__name__):
                faults.append(f"picture {number}: {kind}: {result.error}")
    return answers, faults


def send_requests(server: RunningServer, name: str, numbers: range) -> tuple[Counter[str], list[str]]:
    """The same for requests that our client does not send."""
    answers: Counter[str] = Counter()
    faults = []
    with triton.InferenceServerClient(server.grpc_url) as client:
        for number in numbers:
            rng = random.Random(number)
            model = rng.choice((name, f"{name}_pixels"))
            try:
                client.infer(model, list(_inputs(rng)), parameters=_parameters(rng), client_timeout=60)
                kind = "boxes"
            except triton.InferenceServerException as error:
                kind = str(error.status()).removeprefix("StatusCode.")
                if kind != "INVALID_ARGUMENT":
                    faults.append(f"request {number}: {error}")
            answers[kind] += 1
    return answers, faults


def _inputs(rng: random.Random) -> Iterator[triton.InferInput]:
    for tensor in rng.choice((["image"], ["pixels"], ["pixels"], ["pixels"], ["image", "pixels"], ["boxes"])):
        usual = "BYTES" if tensor == "image" else "UINT8"
        kind = usual if rng.random() < 0.8 else rng.choice(list(TYPES))
        shapes = ([1, 1], [2, 1]) if tensor == "image" else ([1, 30, 40, 3], [2, 1, 1, 3], [1, 3, 500, 3])
        shape = list(rng.choice(shapes))
        if rng.random() < 0.3:
            shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 9, 400))
        array = np.zeros(shape, TYPES[kind])
        if kind == "BYTES":
            picture = hostile_picture(rng.randrange(1 << 30))
            array[...] = picture if array.size < 10 else picture[:1000]  # gRPC can send 2 GiB at most
        given = triton.InferInput(tensor, shape, kind)
        given.set_data_from_numpy(array)
        yield given


def _parameters(rng: random.Random) -> dict[str, object]:
    values = (0.5, 1, 0, -1, 1e308, 10**15, "high", "", "0.5", True, "[" * 2000, "\x00", "NaN")
    names = ("score_thresh", "nms_thresh", "detections_per_img", "unknown", "x" * 300)
    return {name: rng.choice(values) for name in rng.sample(names, rng.choice((0, 0, 1, 2)))}


def is_ready(server: RunningServer) -> bool:
    """Whether the server reports that it is ready and every step's process is alive."""
    with triton.InferenceServerClient(server.grpc_url) as client:
        return bool(client.is_server_ready()) and not server.dead_steps()


if __name__ == "__main__":
    sys.exit(main())
