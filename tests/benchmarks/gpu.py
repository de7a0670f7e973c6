"""Compares the fused pipeline and the served models with plain torchvision, in one run on this GPU.

    python tests/benchmarks/gpu.py --models fasterrcnn_resnet50_fpn maskrcnn_resnet50_fpn --detections 10 100

Weights are random and find far more than 100 objects in each picture, so the limit `detections_per_img` makes the
number of detections exact. The pipeline and the served models get it with each request, torchvision as a setting.

Stages: each stage by itself, compared with its theoretical minimum (the floor). In process: from uint8 pictures on the
GPU to answers on the host; medians, measured in turns. Served: perf_analyzer over gRPC with JPEGs; the peer is
torchvision with mixed precision and nvJPEG in a Triton Python model with dynamic batching (tests/benchmarks/peer). Masks
are compared as 28x28, in the frames of their boxes; "masks pasted" is torchvision with its last step, at the size of the
picture.
"""

import argparse
import gc
import io
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from google.protobuf import text_format
from gpu_in_process import measure_in_process
from gpu_report import (
    InProcess,
    Served,
    comparison_table,
    in_process_table,
    name_of,
    plot_detectors,
    served_table,
    stages_table,
)
from gpu_served import WAYS, measure_served
from PIL import Image
from rcnn_backend.contract.chain import RLES
from rcnn_backend.contract.manifest import read_manifest
from rcnn_backend.devices import Cpu, Device, Gpu
from rcnn_backend.pipeline import Pipeline
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.engines.options import ENGINE_FILES, Calibration, EngineOptions, precision_of
from rcnn_export.engines.precision import FP16, PRECISIONS
from rcnn_export.repository.write import export_repository
from rich.console import Console
from stages import StageTime, measure_stages
from tritonclient.grpc.model_config_pb2 import ModelConfig

PICTURES = Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures"
MODELS = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")
PARTS = ("stages", "in-process", "served")
STAGES_BATCH = 8


def main() -> int:
    """Prints the tables, writes the results as JSON and as plots, and returns 0."""
    arguments = parse_arguments()
    device: Device = Gpu(0) if torch.cuda.is_available() else Cpu()
    console = Console(width=120)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = make_pictures(arguments.size)
    stages: dict[str, list[StageTime]] = {}
    in_process: list[InProcess] = []
    served: list[Served] = []
    with tempfile.TemporaryDirectory() as temporary:
        repository = arguments.repository or Path(temporary)
        detectors = [load_detector(model) for model in arguments.models]
        for detector in detectors:
            export(detector, repository, arguments, console.print)
        for detector in detectors:
            if "stages" in arguments.parts:
                stages |= measure_stages_of(detector, repository, device, pictures, arguments.detections)
            if "in-process" in arguments.parts:
                pipeline = Pipeline.load(repository, exported_name(detector), device)
                in_process += measure_in_process(
                    detector,
                    pipeline,
                    pictures,
                    arguments.batches,
                    arguments.detections,
                    not arguments.no_compile,
                )
                del pipeline
            free_memory(device)
        for title, rows in stages.items():
            console.print(stages_table(rows, title))
        if in_process:
            console.print(in_process_table(in_process))
        for detector in detectors if "served" in arguments.parts else ():
            served += measure_served(
                repository,
                detector,
                exported_name(detector),
                [encode(picture) for picture in pictures],
                arguments.serve,
                arguments.detections,
                arguments.clients,
                arguments.seconds,
            )
    if served:
        console.print(served_table(served))
    if in_process or served:
        console.print(comparison_table(in_process, served))
    results = {
        "where": describe_machine(device),
        "command": f"python {shlex.join(sys.argv)}",
        "stages_ms": {title: [row._asdict() for row in rows] for title, rows in stages.items()},
        "in_process": [row._asdict() for row in in_process],
        "served": [row._asdict() for row in served],
    }
    (arguments.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"{results['where']}\ncommand: {results['command']}", markup=False, soft_wrap=True)
    plot_detectors(served, arguments.out)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        help="as for rcnn-export --model; the others are compared with the first",
    )
    parser.add_argument("--engine", choices=tuple(ENGINE_FILES), default="aoti")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default=FP16.name)
    parser.add_argument("--size", default="1333x800", help="of the pictures, WxH (default: %(default)s)")
    parser.add_argument(
        "--detections", type=int, nargs="+", default=[10, 100], help="in each picture (default: 10 100)"
    )
    parser.add_argument(
        "--repository", type=Path, help="folder in which the exported detectors are kept for the next run"
    )
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=PARTS, help="what to measure; no part: only export"
    )
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 4, 8, 16], help="in process: batch sizes"
    )
    parser.add_argument("--no-compile", action="store_true", help="in process: do not measure torch.compile")
    parser.add_argument("--serve", nargs="+", choices=WAYS, default=tuple(WAYS), help="the ways to serve")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 4, 16, 32], help="numbers of clients of a server"
    )
    parser.add_argument("--seconds", type=float, default=9.0, help="duration of each served measurement")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    return parser.parse_args()


def exported_name(detector: Detector) -> str:
    """Its name in the repository."""
    return f"bench_{name_of(detector)}"


def export(
    detector: Detector, repository: Path, arguments: argparse.Namespace, report: Callable[[str], None]
) -> None:
    """Exports the detector, unless the repository has these weights as an engine of that kind and precision."""
    precision = precision_of(arguments.engine, arguments.precision)
    calibration = Calibration(PICTURES) if precision.is_quantized else None
    options = EngineOptions(arguments.engine, precision, calibration=calibration)
    version_dir = repository / f"{exported_name(detector)}_rpn" / "1"
    if (version_dir / ENGINE_FILES[options.engine]).is_file():
        manifest = read_manifest(version_dir)
        wanted = options.precision.name, detector.weights_hash
        if (manifest["precision"], manifest["weights_sha256"]) == wanted:
            report(f"{detector.model_name} was exported before")
            return
    export_repository(detector, repository, exported_name(detector), report, options)
    for part in ("", "_fused"):
        leave_out_rles(repository / f"{exported_name(detector)}{part}" / "config.pbtxt")


def leave_out_rles(path: Path) -> None:
    """Removes the run-length codes from a model's outputs: perf_analyzer requests all, and the peer has no codes."""
    config = text_format.Parse(path.read_text(), ModelConfig())
    outputs = [output for output in config.output if output.name != RLES.name]
    del config.output[:]
    config.output.extend(outputs)
    path.write_text(text_format.MessageToString(config))


def describe_machine(device: Device) -> str:
    """The GPU, the versions of everything that is measured, and the commit."""
    where = torch.cuda.get_device_name() if device.is_gpu else platform.processor()
    names = ("torch", "torchvision", "nvidia-pytriton", "cupy-cuda12x", "cupy-cuda13x", "numpy")
    versions = [f"{name} {metadata.version(name)}" for name in names if is_installed(name)]
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=PICTURES
    )
    return ", ".join([where, *versions, f"commit {git.stdout.strip() or 'unknown'}"])


def is_installed(name: str) -> bool:
    """Whether the package is installed."""
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def measure_stages_of(
    detector: Detector,
    repository: Path,
    device: Device,
    pictures: Sequence[np.ndarray],
    detections: Sequence[int],
) -> dict[str, list[StageTime]]:
    """The stages of one batch for each number of detections, by the title of their table."""
    pipeline = Pipeline.load(repository, exported_name(detector), device)
    batch = [pictures[index % len(pictures)] for index in range(STAGES_BATCH)]
    jpegs = [encode(picture) for picture in batch]
    return {
        f"{name_of(detector)}, stages by themselves, batch {STAGES_BATCH}, {count} detections each": (
            measure_stages(pipeline, detector, batch, jpegs, count)
        )
        for count in detections
    }


def free_memory(device: Device) -> None:
    """Frees the GPU memory of earlier measurements, for the servers."""
    gc.collect()
    if device.is_gpu:
        import cupy  # installed only for GPUs

        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()


def make_pictures(size: str) -> list[np.ndarray]:
    """The sample pictures, resized to ``size`` (WxH): uint8 RGB [h, w, 3]."""
    width, height = (int(side) for side in size.split("x"))
    return [
        np.array(Image.open(path).convert("RGB").resize((width, height)))
        for path in sorted(PICTURES.glob("*.jpg"))
    ]


def encode(picture: np.ndarray) -> bytes:
    """The picture as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
