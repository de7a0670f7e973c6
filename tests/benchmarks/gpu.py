"""The fused pipeline and the served models beside what people use now, in one run on this GPU.

    python tests/benchmarks/gpu.py --model fasterrcnn_resnet50_fpn --weights my.pth --out bench

In process: from uint8 pictures on the GPU to boxes on the host, medians, the contenders taking
turns. Served: perf_analyzer over gRPC with JPEGs; the peer is torchvision with mixed precision and
nvJPEG in a Triton Python model with dynamic batching (tests/benchmarks/peer). Stages: each by
itself beside its floor.
"""

import argparse
import contextlib
import io
import json
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from gpu_report import Served, in_process_table, plot, served_table, stages_table
from PIL import Image
from rcnn_backend.devices import Cpu, Device, Gpu
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.server.local_server import running_server
from rcnn_backend.server.mps import CONTROL as mps_control
from rcnn_client.tools.perf_analyzer import PerfAnalyzerError, find_perf_analyzer, write_input
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.engines.options import ENGINE_FILES, EngineOptions
from rcnn_export.engines.precision import FP16, PRECISIONS
from rcnn_export.repository.write import export_repository
from rich.console import Console
from stages import StageTime, measure_stages

PEER = Path(__file__).resolve().parent / "peer"
PICTURES = Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures"
NAME = "bench"
TURNS = 30
STAGES_BATCH = 8


class Contender(NamedTuple):
    """``run`` takes uint8 RGB pictures [h, w, 3] on the device and returns with the boxes on the host."""

    name: str
    run: Callable[[Sequence[torch.Tensor]], object]


def main() -> int:
    """Prints both tables, writes them as JSON with a plot, and returns 0."""
    arguments = parse_arguments()
    device: Device = Gpu(0) if torch.cuda.is_available() else Cpu()
    detector = load_detector(arguments.model, arguments.weights)
    console = Console(width=110)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        repository = arguments.repository or Path(temporary) / "repository"
        if not arguments.repository:
            options = EngineOptions(arguments.engine, PRECISIONS[arguments.precision])
            export_repository(detector, repository, NAME, console.print, options)
        pipeline = Pipeline.load(repository, NAME, device)
        stages = measure_each_stage(detector, pipeline, arguments)
        console.print(stages_table(stages, STAGES_BATCH))
        measured = measure_in_process(detector, pipeline, arguments)
        console.print(in_process_table(measured))
        del pipeline
        add_peer(repository, arguments.model, arguments.weights)
        served = measure_served(repository, Path(temporary), arguments) if arguments.clients else []
        console.print(served_table(served))
    results = {
        "where": describe_machine(device),
        "command": f"python {shlex.join(sys.argv)}",
        "stages_ms": [row._asdict() for row in stages],
        "in_process_ms": measured,
        "served": [row._asdict() for row in served],
    }
    (arguments.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"{results['where']}\ncommand: {results['command']}", markup=False, soft_wrap=True)
    plot(served, arguments.out / "gpu.png")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The options, numbers as lists."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="fasterrcnn_resnet50_fpn", help="as rcnn-export takes it")
    parser.add_argument("--weights", default="random", help="as rcnn-export takes it")
    parser.add_argument("--engine", choices=tuple(ENGINE_FILES), default="aoti")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default=FP16.name)
    parser.add_argument("--size", default="1333x800", help="of the pictures, WxH (default: %(default)s)")
    parser.add_argument(
        "--repository", type=Path, help=f"with such a detector named {NAME}, in place of exporting it"
    )
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 32])
    parser.add_argument("--seconds", type=float, default=9.0, help="for each served measurement")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    return parser.parse_args()


def describe_machine(device: Device) -> str:
    """The GPU, the versions of everything that is measured, and the commit."""
    where = torch.cuda.get_device_name() if device.is_gpu else platform.processor()
    names = ("torch", "torchvision", "nvidia-pytriton", "cupy-cuda12x", "cupy-cuda13x", "numpy")
    versions = [f"{name} {metadata.version(name)}" for name in names if is_installed(name)]
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=PEER)
    return ", ".join([where, *versions, f"commit {git.stdout.strip() or 'unknown'}"])


def is_installed(name: str) -> bool:
    """Whether pip knows the package."""
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def measure_each_stage(
    detector: Detector, pipeline: Pipeline, arguments: argparse.Namespace
) -> list[StageTime]:
    """The stages of one batch."""
    pictures = [make_pictures(arguments.size)[index % 2] for index in range(STAGES_BATCH)]
    return measure_stages(pipeline, detector, pictures, [encode(picture) for picture in pictures])


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


def encode(picture: np.ndarray) -> bytes:
    """As a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def timed(contender: Contender, batch: Sequence[torch.Tensor]) -> float:
    """Milliseconds of one run, which ends when its boxes are on the host."""
    started = time.perf_counter()
    contender.run(batch)
    return 1e3 * (time.perf_counter() - started)


def add_peer(repository: Path, model: str, weights: str) -> None:
    """Puts the peer into the repository, for that detector."""
    shutil.rmtree(repository / "torchvision_peer", ignore_errors=True)
    shutil.copytree(PEER, repository / "torchvision_peer")
    with (repository / "torchvision_peer" / "config.pbtxt").open("a") as config:
        for key, value in (("model", model), ("weights", weights)):
            config.write(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')


def measure_served(repository: Path, temporary: Path, arguments: argparse.Namespace) -> list[Served]:
    """perf_analyzer on the peer, the ensemble and the fused model, one server each; ours with and without MPS, and by default."""
    for index, pixels in enumerate(make_pictures(arguments.size)):
        (temporary / f"{index}.jpg").write_bytes(encode(pixels))
    data, links = temporary / "input.json", temporary / "links"
    write_input(sorted(temporary.glob("*.jpg")), data)
    links.mkdir()
    analyzer = find_perf_analyzer(links)
    rows = []
    ours = {"ensemble": NAME, "fused": f"{NAME}_fused"}
    runs = [("torchvision peer", "torchvision_peer", {"mps": "off"})]
    runs += [(label, model, {"mps": "off"}) for label, model in ours.items()]
    if shutil.which(mps_control):
        runs += [(f"{label}, --mps on", model, {"mps": "on"}) for label, model in ours.items()]
    runs.append(("rcnn-serve without options", NAME, {"mps": "auto", "fused": "auto"}))
    for label, model, options in runs:
        with running_server(repository, [model], **options) as server:
            for clients in arguments.clients:
                with contextlib.suppress(PerfAnalyzerError):  # no stable speed yet: this is to warm it
                    analyzer.measure(server.grpc_url, model, data, clients, arguments.seconds / 2)
                found = analyzer.measure(server.grpc_url, model, data, clients, arguments.seconds)
                rows.append(Served(label, clients, found.images_per_s, found.p50_ms, found.p99_ms))
    return rows


if __name__ == "__main__":
    sys.exit(main())
