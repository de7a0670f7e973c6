"""Compares a detector on this CPU, in FP32 and INT8, in process and served, with runtimes of torchvision's whole graph.

    python tests/benchmarks/cpu_peers.py

All take turns, picture by picture or burst by burst, so that other load on the machine affects them equally. INT8 is
calibrated on only two photographs, which is enough to measure its speed.
"""

import argparse
import contextlib
import functools
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from memory import memory_mib
from PIL import Image
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.operators.openvino_runtime import VERSION, openvino
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.server.local_server import running_server
from rcnn_client import Detector as Client
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.engines.options import Calibration, EngineOptions
from rcnn_export.engines.precision import FP32, INT8
from rcnn_export.repository.write import export_repository
from rich.console import Console
from rich.table import Column, Table
from sklearn.datasets import load_sample_images

MODEL = "fasterrcnn_resnet50_fpn"
CLIENTS = 16
OPENVINO = "OpenVINO, the whole graph"
THREADS = os.cpu_count() or 1

Call = Callable[[], object]


class Measured(NamedTuple):
    """Medians of one picture at a time and of bursts, and the resident memory of a server's processes after them."""

    latency_ms: float
    pictures_a_second: float | None = None
    memory_mib: float | None = None


def main() -> int:
    """Prints a table for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=15, help="number of timed turns (default: %(default)s)"
    )
    parser.add_argument(
        "--bursts", type=int, default=3, help=f"bursts of {CLIENTS} pictures (default: %(default)s)"
    )
    parser.add_argument("--sizes", nargs="+", default=["480x640", "608x800"], help="of the pictures, HxW")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    console = Console(width=110)
    for size in arguments.sizes:
        height, width = map(int, size.split("x"))
        detector = load_detector(MODEL)
        detector.model.transform.min_size = (height,)
        detector.model.transform.max_size = max(height, width)
        with tempfile.TemporaryDirectory() as folder:
            photographs = load_sample_images().images
            rows = measure(
                detector, (height, width), photographs, Path(folder), arguments.repeats, arguments.bursts
            )
        console.print(tabulate(f"{MODEL}, {size}, {THREADS} threads", rows))
    console.print(
        f"torch {torch.__version__}, OpenVINO {VERSION}, ONNX Runtime {onnxruntime.__version__}, "
        f"{platform.machine()}, {platform.python_version()}"
    )
    console.print("command: python", shlex.join(sys.argv))
    return 0


def tabulate(title: str, rows: Mapping[str, Measured]) -> Table:
    """A table of the rows and their ratios to OpenVINO's."""
    columns = ("one picture, ms", "of OpenVINO's", f"{CLIENTS} at once, pictures/s", "of OpenVINO's", "MiB")
    table = Table("", *(Column(column, justify="right") for column in columns), title=title)
    base = rows[OPENVINO]
    for name, row in rows.items():
        cells = [f"{row.latency_ms:.0f}", f"{row.latency_ms / base.latency_ms:.2f}"]
        if row.pictures_a_second and base.pictures_a_second:
            ratio = row.pictures_a_second / base.pictures_a_second
            cells += [f"{row.pictures_a_second:.2f}", f"{ratio:.2f}"]
        table.add_row(name, *cells, f"{row.memory_mib:.0f}" if row.memory_mib else "")
    return table


def measure(
    detector: Detector,
    size_hw: tuple[int, int],
    photographs: Sequence[npt.NDArray[np.uint8]],
    folder: Path,
    repeats: int,
    bursts: int,
) -> dict[str, Measured]:
    """Measures each way from a JPEG of that size to boxes.

    Args:
        photographs: RGB [h, w, 3]. The first is sent; INT8 is calibrated on all.
    """
    height, width = size_hw
    (folder / "photographs").mkdir()
    for number, photograph in enumerate(photographs):
        path = folder / "photographs" / f"{number}.jpg"
        Image.fromarray(photograph).resize((width, height)).save(path, quality=90)
    data = (folder / "photographs" / "0.jpg").read_bytes()
    repositories = {precision: folder / precision.name for precision in (FP32, INT8)}
    for precision, repository in repositories.items():
        calibration = Calibration(folder / "photographs") if precision.is_quantized else None
        engines = EngineOptions(precision=precision, calibration=calibration)
        export_repository(detector, repository, MODEL, options=engines)
    graph = export_whole(detector, folder / "whole.onnx", size_hw)

    def pixels() -> torch.Tensor:
        return torch.from_numpy(np.array(decode_image(data, 10**8))).permute(2, 0, 1) / 255

    def eager() -> object:
        with torch.inference_mode():
            return detector.model([pixels()])

    openvino_alone, openvino_together = (compile_whole(graph, hint) for hint in ("LATENCY", "THROUGHPUT"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def together() -> None:
        request = openvino_together.create_infer_request()
        request.start_async([pixels().numpy()])
        request.wait()

    one: dict[str, Call] = {
        "torchvision eager": eager,
        "ONNX Runtime, the whole graph": lambda: session.run(None, {"image": pixels().numpy()}),
        OPENVINO: lambda: openvino_alone([pixels().numpy()]),
    }
    many: dict[str, Call] = {OPENVINO: together}
    servers = {}
    with contextlib.ExitStack() as opened:
        for precision, repository in repositories.items():
            pipeline = Pipeline.load(repository, MODEL)
            one[f"{precision.name}, in process"] = functools.partial(pipeline.detect, [data])
            for way, fused in (("steps", "off"), ("fused", "on")):
                name = f"{precision.name}, served, {way}"
                server = opened.enter_context(running_server(repository, [MODEL], fused=fused))
                client = opened.enter_context(Client(server.grpc_url, MODEL, timeout_s=300))
                one[name] = many[name] = functools.partial(client.detect, data)
                servers[name] = server
        pool = opened.enter_context(ThreadPoolExecutor(CLIENTS))
        latencies_ms = take_turns(one, repeats)
        bursts_ms = take_turns(
            {name: functools.partial(burst, pool, call) for name, call in many.items()}, bursts
        )
        memory = {name: sum(memory_mib(server).values()) for name, server in servers.items()}
    rates = {name: CLIENTS / (ms / 1e3) for name, ms in bursts_ms.items()}
    return {name: Measured(ms, rates.get(name), memory.get(name)) for name, ms in latencies_ms.items()}


def export_whole(detector: Detector, path: Path, size_hw: tuple[int, int]) -> Path:
    """torchvision's detector as one ONNX graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about torchvision's own code
        torch.onnx.export(
            detector.model.eval(),
            ([torch.rand(3, *size_hw)],),
            path,
            opset_version=17,
            dynamo=False,
            input_names=["image"],
            output_names=["boxes", "labels", "scores"],
            dynamic_axes={"image": {1: "height", 2: "width"}},
        )
    return path


def compile_whole(path: Path, hint: str) -> openvino.CompiledModel:
    options = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(path, "CPU", options)


def burst(pool: ThreadPoolExecutor, call: Call) -> None:
    for answer in [pool.submit(call) for _ in range(CLIENTS)]:
        answer.result()


def take_turns(calls: Mapping[str, Call], turns: int) -> dict[str, float]:
    """The median milliseconds of each call, after one that is not timed."""
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn:
                times_ms[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(each) for name, each in times_ms.items()}


if __name__ == "__main__":
    sys.exit(main())
