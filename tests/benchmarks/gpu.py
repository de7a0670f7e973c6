"""The fused pipeline and the served models beside what people use now, in one run on this GPU.

    python tests/benchmarks/gpu.py --model fasterrcnn_resnet50_fpn --weights my.pth --out bench

In process: from uint8 pictures on the GPU to boxes on the host, medians, the contenders taking
turns. Served: perf_analyzer over gRPC with JPEGs; the peer is torchvision with mixed precision and
nvJPEG in a Triton Python model with dynamic batching (tests/benchmarks/peer).
"""

import argparse
import json
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from rcnn_backend.devices import Cpu, Device, Gpu
from rcnn_backend.local_server import running_server
from rcnn_backend.pipeline import Pipeline
from rcnn_client.tools.perf_analyzer import find_perf_analyzer, write_input
from rcnn_export.detector import Detector, load_detector
from rcnn_export.engine_options import ENGINE_FILES, FP16, FP32, EngineOptions
from rcnn_export.repository import export_repository
from rich.console import Console
from rich.table import Table

PEER = Path(__file__).resolve().parent / "peer"
PICTURES = Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures"
NAME = "bench"
TURNS = 30


class Contender(NamedTuple):
    """``run`` takes uint8 RGB pictures [h, w, 3] on the device and returns with the boxes on the host."""

    name: str
    run: Callable[[Sequence[torch.Tensor]], object]


class Served(NamedTuple):
    """A served model at one concurrency."""

    model: str
    clients: int
    images_per_s: float
    p50_ms: float
    p99_ms: float


def main() -> int:
    """Prints both tables, writes them as JSON with a plot, and returns 0."""
    arguments = parse_arguments()
    device: Device = Gpu(0) if torch.cuda.is_available() else Cpu()
    detector = load_detector(arguments.model, arguments.weights)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as temporary:
        repository = Path(temporary) / "repository"
        options = EngineOptions(arguments.engine, arguments.precision)
        export_repository(detector, repository, NAME, console.print, options)
        measured = measure_in_process(detector, Pipeline.load(repository, NAME, device), arguments)
        console.print(in_process_table(measured))
        add_peer(repository, arguments.model, arguments.weights)
        served = measure_served(repository, Path(temporary), arguments) if arguments.clients else []
        console.print(served_table(served))
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {"in_process_ms": measured, "served": [row._asdict() for row in served]}
    (arguments.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(served, arguments.out / "gpu.png")
    where = torch.cuda.get_device_name() if device.is_gpu else platform.processor()
    console.print(f"{where}, torch {torch.__version__}, torchvision {torchvision.__version__}")
    console.print(f"command: python {shlex.join(sys.argv)}", markup=False, soft_wrap=True)
    return 0


def parse_arguments() -> argparse.Namespace:
    """The options, numbers as lists."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="fasterrcnn_resnet50_fpn", help="as rcnn-export takes it")
    parser.add_argument("--weights", default="random", help="as rcnn-export takes it")
    parser.add_argument("--engine", choices=tuple(ENGINE_FILES), default="aoti")
    parser.add_argument("--precision", choices=(FP32, FP16), default=FP16)
    parser.add_argument("--size", default="1333x800", help="of the pictures, WxH (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 32])
    parser.add_argument("--seconds", type=float, default=9.0, help="for each served measurement")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    return parser.parse_args()


def measure_in_process(
    detector: Detector, pipeline: Pipeline, arguments: argparse.Namespace
) -> dict[str, dict[int, float]]:
    """Median milliseconds a batch, by contender and batch size."""
    target = torch.device("cuda" if pipeline.device.is_gpu else "cpu")
    contenders = [
        torchvision_contender("torchvision FP32", detector, target),
        torchvision_contender("torchvision AMP", detector, target, amp=True),
        Contender(
            f"fused {arguments.engine} {arguments.precision}", lambda batch: run_pipeline(pipeline, batch)
        ),
    ]
    if not arguments.no_compile:
        compiled = torchvision_contender(
            "torchvision AMP, compiled", detector, target, amp=True, compiled=True
        )
        contenders.insert(2, compiled)
    pictures = [torch.from_numpy(pixels).to(target) for pixels in make_pictures(arguments.size)]
    times: dict[str, dict[int, float]] = {contender.name: {} for contender in contenders}
    for size in arguments.batches:
        batch = [pictures[index % len(pictures)] for index in range(size)]
        for contender in contenders:
            for _ in range(3):
                contender.run(batch)
        taken = [[timed(contender, batch) for contender in contenders] for _ in range(TURNS)]
        for contender, column in zip(contenders, zip(*taken, strict=True), strict=True):
            times[contender.name][size] = statistics.median(column)
    return times


def torchvision_contender(
    name: str, detector: Detector, target: torch.device, amp: bool = False, compiled: bool = False
) -> Contender:
    """The torch model itself; compiled, its backbone and its heads are."""
    model = detector.model.eval().to(target)
    if compiled:
        model = load_detector(detector.model_name, detector.weights).model.eval().to(target)
        model.backbone.compile()
        model.roi_heads.box_head.compile()
    autocast = torch.autocast(target.type, enabled=amp and target.type == "cuda")

    def run(batch: Sequence[torch.Tensor]) -> object:
        with torch.inference_mode(), autocast:
            found = model([picture.permute(2, 0, 1) / 255 for picture in batch])
        return [{key: value.cpu() for key, value in image.items()} for image in found]

    return Contender(name, run)


def run_pipeline(pipeline: Pipeline, batch: Sequence[torch.Tensor]) -> object:
    """The pipeline on the same pictures, whose memory it shares."""
    with pipeline.device.active():
        pixels = [pipeline.device.import_array(picture) for picture in batch]
        parameters = [pipeline.detection_parameters] * len(batch)
        return pipeline.device.download(pipeline.run(pixels, parameters))


def make_pictures(size: str) -> list[np.ndarray]:
    """The sample pictures at that size, uint8 RGB [h, w, 3]."""
    width, height = (int(side) for side in size.split("x"))
    return [
        np.array(Image.open(path).convert("RGB").resize((width, height)))
        for path in sorted(PICTURES.glob("*.jpg"))
    ]


def timed(contender: Contender, batch: Sequence[torch.Tensor]) -> float:
    """Milliseconds of one run, which ends when its boxes are on the host."""
    started = time.perf_counter()
    contender.run(batch)
    return 1e3 * (time.perf_counter() - started)


def add_peer(repository: Path, model: str, weights: str) -> None:
    """Puts the peer into the repository, for that detector."""
    shutil.copytree(PEER, repository / "torchvision_peer")
    with (repository / "torchvision_peer" / "config.pbtxt").open("a") as config:
        for key, value in (("model", model), ("weights", weights)):
            config.write(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')


def measure_served(repository: Path, temporary: Path, arguments: argparse.Namespace) -> list[Served]:
    """perf_analyzer on the peer, the ensemble and the fused model, one server each."""
    for index, pixels in enumerate(make_pictures(arguments.size)):
        Image.fromarray(pixels).save(temporary / f"{index}.jpg", quality=90)
    data, links = temporary / "input.json", temporary / "links"
    write_input(sorted(temporary.glob("*.jpg")), data)
    links.mkdir()
    analyzer = find_perf_analyzer(links)
    rows = []
    for model in ("torchvision_peer", NAME, f"{NAME}_fused"):
        with running_server(repository, [model]) as server:
            for clients in arguments.clients:
                analyzer.measure(server.grpc_url, model, data, clients, arguments.seconds / 2)  # warm
                found = analyzer.measure(server.grpc_url, model, data, clients, arguments.seconds)
                rows.append(Served(model, clients, found.images_per_s, found.p50_ms, found.p99_ms))
    return rows


def in_process_table(measured: dict[str, dict[int, float]]) -> Table:
    """Images a second and milliseconds a batch."""
    table = Table(title="In process: uint8 pictures on the device to boxes on the host")
    table.add_column("contender")
    batches = list(next(iter(measured.values())))
    for size in batches:
        table.add_column(f"batch {size}", justify="right")
    for name, times in measured.items():
        table.add_row(
            name, *(f"{size / times[size] * 1e3:.0f} img/s, {times[size]:.1f} ms" for size in batches)
        )
    return table


def served_table(rows: Sequence[Served]) -> Table:
    """A line a model and concurrency."""
    table = Table(title="Served: JPEGs over gRPC, perf_analyzer")
    for column in ("model", "clients", "img/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        numbers = f"{row.images_per_s:.0f}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}"
        table.add_row(row.model, str(row.clients), *numbers)
    return table


def plot(rows: Sequence[Served], path: Path) -> None:
    """Throughput against latency, a line a model."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    models: dict[str, list[Any]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row)
    for model, points in models.items():
        line = axes.plot(
            [p.p50_ms for p in points], [p.images_per_s for p in points], marker="o", label=model
        )
        for point in points:
            place = (point.p50_ms, point.images_per_s)
            axes.annotate(
                str(point.clients),
                place,
                xytext=(4, 4),
                textcoords="offset points",
                color=line[0].get_color(),
            )
    axes.set(
        xlabel="p50 latency, ms (numbers: clients)", ylabel="images a second", xscale="log", ylim=(0, None)
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
