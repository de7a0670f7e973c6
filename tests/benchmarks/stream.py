"""Compares ``detect_stream`` over many files with perf_analyzer and plain ``infer`` calls, at the same concurrency.

    python tests/benchmarks/stream.py --pictures 1000 --in-flight 16

They take turns, so that other load on the machine affects all of them. Three files are corrupt: the errors must name
them, and every other answer must be that of its own picture. The client's memory after each turn is printed.
"""

import argparse
import io
import itertools
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from rcnn_backend.server.local_server import running_server
from rcnn_client import Detections, Detector
from rcnn_client.tools.perf_analyzer import find_perf_analyzer, write_input
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
SAMPLES = Path(__file__).resolve().parents[2] / "export" / "samples"
SCORE_THRESH = 0.0  # so every picture has boxes, and no two have the same
NUM_CORRUPT = 3
NUM_TURNS = 5
LEAST_S = 3.0  # shortest measurement of perf_analyzer


@dataclass
class Measurement:
    """The speed of each way, and the errors in the stream's answers."""

    stream_s: float = 0.0
    infer_s: float = 0.0
    perf_analyzer_per_s: list[float] = field(default_factory=list)  # images per second, for each turn
    num_pictures: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)  # of this process, after each turn


def main() -> int:
    """Prints the images per second of each; returns 0 if all answers were right and errors named the corrupt files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--name", default="digits")
    options = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        files, corrupt = write_pictures(Path(folder), options.pictures)
        with running_server(options.repository, [options.name]) as server:
            done = measure(server.grpc_url, options.name, files, corrupt, options.in_flight)
    table = Table(title=f"{done.num_pictures} pictures, {options.in_flight} in flight")
    stream, plain = (done.num_pictures / seconds for seconds in (done.stream_s, done.infer_s))
    analyzed = statistics.mean(done.perf_analyzer_per_s)
    memory = ", ".join(f"{mib:.0f}" for mib in done.memory_mib) + " MiB"
    for column in ("", "images a second", "detect_stream / this"):
        table.add_column(column, justify="right" if column else "left")
    for way, per_s in (("detect_stream", stream), ("plain infer", plain), ("perf_analyzer", analyzed)):
        table.add_row(way, f"{per_s:.1f}", f"{stream / per_s:.3f}")
    console.print(table)
    console.print(f"the client's memory after each turn: {memory}")
    console.print(f"failed, as they should: {', '.join(sorted(done.failed))}", markup=False)
    for line in done.wrong[:10]:
        console.print(f"wrong: {line}", markup=False)
    console.print(
        f"Python {platform.python_version()}; command: python {shlex.join(sys.argv)}",
        markup=False,
        soft_wrap=True,
    )
    return 1 if done.wrong else 0


def write_pictures(folder: Path, count: int) -> tuple[list[Path], set[Path]]:
    """Writes ``count`` JPEG files with a few different contents; returns them, and which of them are corrupt."""
    contents = []
    for path in sorted((SAMPLES / "pictures").glob("*.jpg")):
        for angle in (0, 90, 180):
            buffer = io.BytesIO()
            Image.open(path).convert("RGB").resize((160, 120)).rotate(angle, expand=True).save(buffer, "JPEG")
            contents.append(buffer.getvalue())
    files = [folder / f"picture_{index:04d}.jpg" for index in range(count)]
    for path, content in zip(files, itertools.cycle(contents)):
        path.write_bytes(content)
    corrupt = {files[count * (turn + 1) // (NUM_CORRUPT + 1)] for turn in range(NUM_CORRUPT)}
    for path in corrupt:
        path.write_bytes(path.read_bytes()[:200])
    return files, corrupt


def measure(url: str, name: str, files: list[Path], corrupt: set[Path], in_flight: int) -> Measurement:
    """Measures each way over all files, in ``NUM_TURNS`` turns; perf_analyzer runs as long as the stream took."""
    done = Measurement(num_pictures=len(files))
    good = [path for path in files if path not in corrupt]
    with (
        Detector(url, name) as detector,
        triton.InferenceServerClient(url) as client,
        tempfile.TemporaryDirectory() as links,
    ):
        analyzer = find_perf_analyzer(Path(links))
        distinct = {path.read_bytes(): path for path in good}
        expected = {data: detector.detect(path, score_thresh=SCORE_THRESH) for data, path in distinct.items()}
        data = files[0].with_name("perf_analyzer.json")
        write_input(distinct.values(), data)
        for turn in range(NUM_TURNS):
            part = files[turn * len(files) // NUM_TURNS : (turn + 1) * len(files) // NUM_TURNS]
            started = time.perf_counter()
            answered = check(detector, part, corrupt, expected, in_flight, done)
            took_s = time.perf_counter() - started
            done.stream_s += took_s
            if answered != part:
                done.wrong.append(f"turn {turn}: the answers came in another order than the pictures")
            started = time.perf_counter()
            infer_each(client, name, [path for path in part if path not in corrupt], in_flight)
            done.infer_s += time.perf_counter() - started
            found = analyzer.measure(url, name, data, in_flight, max(took_s, LEAST_S))
            done.perf_analyzer_per_s.append(found.images_per_s)
            done.memory_mib.append(resident_mib())
    if set(done.failed) != {path.name for path in corrupt}:
        done.wrong.append(f"corrupt were {sorted(path.name for path in corrupt)}")
    return done


def check(
    detector: Detector,
    part: list[Path],
    corrupt: set[Path],
    expected: dict[bytes, Detections],
    in_flight: int,
    done: Measurement,
) -> list[Path]:
    """Runs a stream and compares its answers; returns the pictures in the order of the answers."""
    answered = []
    for result in detector.detect_stream(iter(part), in_flight=in_flight, score_thresh=SCORE_THRESH):
        answered.append(result.image)
        if result.error:
            done.failed.append(Path(str(result.error).partition(":")[0]).name)
        elif not is_same(result.detections, expected[result.image.read_bytes()]):
            done.wrong.append(f"{result.image.name}: the boxes of another picture")
    return answered


def infer_each(client: triton.InferenceServerClient, name: str, files: list[Path], in_flight: int) -> None:
    """Sends requests as a program without this client would: a thread for each call in flight. Answers are ignored."""

    def infer(path: Path) -> None:
        image = triton.InferInput("image", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[path.read_bytes()]], object))
        client.infer(name, [image], parameters={"score_thresh": SCORE_THRESH}, client_timeout=60)

    with ThreadPoolExecutor(in_flight) as pool:
        for _ in pool.map(infer, files):
            pass


def is_same(answer: Detections, expected: Detections) -> bool:
    """Whether both have the same objects, up to rounding, which depends on the other pictures in the batch."""
    return (
        len(answer) == len(expected)
        and np.allclose(answer.scores, expected.scores, rtol=0, atol=1e-3)
        and np.allclose(answer.boxes[:3], expected.boxes[:3], rtol=0, atol=0.1)
    )


def resident_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
