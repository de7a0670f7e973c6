"""A detector on this CPU beside what runs torchvision's whole graph: in process and served, one run.

    python tests/benchmarks/cpu_peers.py

All take turns, picture by picture or burst by burst, so that whatever else the machine does meets each of them.
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
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.operators.openvino_runtime import VERSION, openvino
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.server.local_server import running_server
from rcnn_client import Detector as Client
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.repository.write import export_repository
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

MODEL = "fasterrcnn_resnet50_fpn"
CLIENTS = 16
SERVED = "this project, served"
FUSED = "this project, served by its fused model"
OPENVINO = "OpenVINO, the whole graph"
THREADS = os.cpu_count() or 1

Call = Callable[[], object]


def main() -> int:
    """Prints two tables for each size: latencies of one picture at a time, and pictures a second at 16 at once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="timed turns (default: %(default)s)")
    parser.add_argument("--bursts", type=int, default=3, help=f"of {CLIENTS} pictures (default: %(default)s)")
    parser.add_argument("--sizes", nargs="+", default=["480x640", "608x800"], help="of the pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    console = Console()
    for size in arguments.sizes:
        height, width = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            detector = load_detector(MODEL)
            detector.model.transform.min_size = (height,)
            detector.model.transform.max_size = max(height, width)
            latencies_ms, rates = measure(
                detector, (height, width), Path(folder), arguments.repeats, arguments.bursts
            )
        title = f"{MODEL}, {size}, {THREADS} threads"
        console.print(
            tabulate(f"{title}: p50 of one picture", latencies_ms, "ms", ".0f"),
            tabulate(f"{title}: {CLIENTS} at once, median", rates, "pictures/s", ".2f"),
        )
    console.print(
        f"torch {torch.__version__}, OpenVINO {VERSION}, ONNX Runtime {onnxruntime.__version__}, "
        f"{platform.machine()}, {platform.python_version()}"
    )
    console.print("command: python", shlex.join(sys.argv))
    return 0


def tabulate(title: str, values: Mapping[str, float], unit: str, number: str) -> Table:
    """One row for each value, beside its ratio to OpenVINO's."""
    table = Table("", unit, "of OpenVINO's", title=title)
    for name, value in values.items():
        table.add_row(name, f"{value:{number}}", f"{value / values[OPENVINO]:.2f}")
    return table


def measure(
    detector: Detector, size_hw: tuple[int, int], folder: Path, repeats: int, bursts: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Medians: milliseconds from a JPEG of that size to boxes, and pictures a second for 16 at once."""
    export_repository(detector, folder, MODEL)
    graph = export_whole(detector, folder / "whole.onnx", size_hw)
    height, width = size_hw
    buffer = io.BytesIO()
    Image.fromarray(load_sample_images().images[0]).resize((width, height)).save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()

    def pixels() -> torch.Tensor:
        return torch.from_numpy(np.array(decode_image(data, 10**8))).permute(2, 0, 1) / 255

    def eager() -> object:
        with torch.inference_mode():
            return detector.model([pixels()])

    openvino_alone, openvino_together = (compile_whole(graph, hint) for hint in ("LATENCY", "THROUGHPUT"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    pipeline = Pipeline.load(folder, MODEL)

    def together() -> None:
        request = openvino_together.create_infer_request()
        request.start_async([pixels().numpy()])
        request.wait()

    with (
        running_server(folder, [MODEL]) as server,
        running_server(folder, [MODEL], fused="on") as fused_server,
        Client(server.grpc_url, MODEL, timeout_s=300) as client,
        Client(fused_server.grpc_url, MODEL, timeout_s=300) as fused_client,
    ):
        latencies_ms = take_turns(
            {
                "torchvision eager": eager,
                "ONNX Runtime, the whole graph": lambda: session.run(None, {"image": pixels().numpy()}),
                OPENVINO: lambda: openvino_alone([pixels().numpy()]),
                "this project, in process": lambda: pipeline.detect([data]),
                SERVED: lambda: client.detect(data),
                FUSED: lambda: fused_client.detect(data),
            },
            repeats,
        )
        with ThreadPoolExecutor(CLIENTS) as pool:
            bursts_ms = take_turns(
                {
                    OPENVINO: lambda: burst(pool, together),
                    SERVED: lambda: burst(pool, lambda: client.detect(data)),
                    FUSED: lambda: burst(pool, lambda: fused_client.detect(data)),
                },
                bursts,
            )
    return latencies_ms, {name: CLIENTS / (ms / 1e3) for name, ms in bursts_ms.items()}


def export_whole(detector: Detector, path: Path, size_hw: tuple[int, int]) -> Path:
    """torchvision's detector as one ONNX graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of torchvision's own code
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
