"""Measures the fused model on one GPU and on two of the same host, in one run (`make bench-gpus`).

    python tests/benchmarks/gpus.py --repository repository --gpus 0 0,1 --clients 32 64

Each set of GPUs has a separate server (`rcnn-serve --gpus`). perf_analyzer makes the load, over gRPC with JPEGs. After a
warm-up there are several measurements; the one with the median rate is shown. A request's time has three parts: the
queue, the model (including copies to and from its process), and the rest, which is client, network and gRPC. CPU use is
given in cores, for each kind of process and for the whole host.

Without --repository, a fasterrcnn_resnet50_fpn with random weights is exported first.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shlex
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean

import torch
from decode_share import BatchTime, time_batch
from gpu import describe_machine, encode, export, exported_name, make_pictures
from gpus_report import Row, gpus_table, shares
from rcnn_backend.devices import Cpu, Gpu
from rcnn_backend.server.model_selection import select_models
from rcnn_client.tools.endpoint import Endpoint
from rcnn_client.tools.perf_analyzer import PerfAnalyzer, PerfAnalyzerError, find_perf_analyzer, write_input
from rcnn_client.tools.triton_statistics import Statistics
from rcnn_export.detector.load import load_detector
from rcnn_export.engines.options import ENGINE_FILES
from rcnn_export.engines.precision import FP16, PRECISIONS
from rcnn_serve import Serving, rcnn_serve
from rich.console import Console
from watch_host import HostWatch

MODEL = "fasterrcnn_resnet50_fpn"
READY_TIMEOUT_S = 600


def main() -> int:
    """Prints each row when it has been measured, then the table; returns 0."""
    options = parse_arguments()
    console = Console(width=180)
    jpegs = [encode(picture) for picture in make_pictures(options.size)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        repository, name = choose_detector(options, folder / "models")
        analyzer, data = prepare_load(folder, jpegs)
        batch = time_in_process(repository, name, jpegs)
        console.print(f"in process: {batch}", markup=False)
        for gpus in options.gpus:
            served = ["--models", name, "--fused", "on", "--mps", "off", "--gpus", gpus]
            with rcnn_serve(repository, *served, "--ready-timeout-s", str(READY_TIMEOUT_S)) as serving:
                console.print(f"GPUs {gpus}: ready after {serving.ready_s:.0f} s", markup=False)
                for clients in options.clients:
                    row = measure(serving, name, analyzer, data, gpus, clients, options)
                    rows.append(row)
                    console.print(f"{row}", markup=False, soft_wrap=True)
    console.print(gpus_table(rows, name))
    cores = os.cpu_count() or 1
    lines = shares(rows, fmean(map(len, jpegs)), batch, cores)
    where = describe_machine(Gpu(0) if torch.cuda.is_available() else Cpu())
    command = f"python {shlex.join(sys.argv)}"
    console.print(*lines, where, f"command: {command}", sep="\n", markup=False, soft_wrap=True)
    if options.json:
        results = {
            "where": where,
            "command": command,
            "cores": cores,
            "batch": batch._asdict(),
            "rows": [{**row._asdict(), "usage": row.usage._asdict()} for row in rows],
        }
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, help="repository with an export, of any engine")
    parser.add_argument("--name", help="name of the detector in the repository (default: the first)")
    parser.add_argument(
        "--engine", choices=tuple(ENGINE_FILES), default="cudnn", help="of the export without --repository"
    )
    parser.add_argument(
        "--precision", choices=tuple(PRECISIONS), default=FP16.name, help="precision of that export"
    )
    parser.add_argument("--gpus", nargs="+", default=["0", "0,1"], help="sets of GPUs (default: 0 0,1)")
    parser.add_argument("--clients", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--seconds", type=float, default=9.0, help="duration of each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="number of measurements for each row")
    parser.add_argument("--size", default="1333x800", help="of the pictures, WxH (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    return parser.parse_args(argv)


def choose_detector(options: argparse.Namespace, folder: Path) -> tuple[Path, str]:
    """The repository and the detector's name. Without a given repository, a detector is exported into ``folder``."""
    if options.repository:
        return options.repository, options.name or select_models(options.repository).detectors[0]
    detector = load_detector(MODEL)
    export(detector, folder, options, print)
    return folder, exported_name(detector)


def prepare_load(folder: Path, jpegs: list[bytes]) -> tuple[PerfAnalyzer, Path]:
    """perf_analyzer, and its input file with one request for each picture."""
    links = folder / "links"
    links.mkdir()
    for number, jpeg in enumerate(jpegs):
        (folder / f"{number}.jpg").write_bytes(jpeg)
    data = folder / "input.json"
    write_input(sorted(folder.glob("*.jpg")), data)
    return find_perf_analyzer(links), data


def time_in_process(repository: Path, name: str, jpegs: list[bytes]) -> BatchTime:
    """Runs ``time_batch`` in a separate process, which has left the GPU before servers start."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(time_batch, repository, name, jpegs).result()


def measure(
    serving: Serving,
    name: str,
    analyzer: PerfAnalyzer,
    data: Path,
    gpus: str,
    clients: int,
    options: argparse.Namespace,
) -> Row:
    """The measurement with the median rate."""
    url = serving.urls["grpc"]
    with contextlib.suppress(PerfAnalyzerError):  # the speed is not stable yet: this only warms the server up
        analyzer.measure(url, name, data, clients, options.seconds / 2)
    rows = []
    for _ in range(options.repeats):
        with (
            Statistics(Endpoint(url, name)) as statistics,
            HostWatch(serving.triton_pid, list(serving.stubs)) as host,
        ):
            before = statistics.read()
            found = analyzer.measure(url, name, data, clients, options.seconds)
            ended = time.monotonic()
            (model,) = statistics.step_times(before, statistics.read())
        rows.append(
            Row(
                gpus,
                clients,
                found.images_per_s,
                found.p50_ms,
                found.p99_ms,
                model.queue_ms,
                model.compute_ms,
                model.images_per_batch,
                host.usage(ended - 0.8 * options.seconds, ended - 0.1 * options.seconds),
            )
        )
    return sorted(rows, key=lambda row: row.images_per_s)[len(rows) // 2]


if __name__ == "__main__":
    sys.exit(main())
