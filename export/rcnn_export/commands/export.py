"""The command ``rcnn-export``: a torchvision detector into a Triton model repository."""

import argparse
import sys
import time
from pathlib import Path

from rcnn_backend.contract.manifest import PlanOptions
from rcnn_backend.engines.profiles import ShapeRange
from rcnn_backend.errors import RepositoryError
from rich.console import Console
from rich.table import Table

from rcnn_export.detector.load import AS_BUILT, TORCHVISION_MODELS, Detector, load_detector
from rcnn_export.engines.options import ENGINE_FILES, ONNX, TENSORRT, EngineOptions
from rcnn_export.engines.plan_shapes import EXAMPLE, parse_shapes, plan_profiles
from rcnn_export.engines.precision import FP32, PRECISIONS
from rcnn_export.errors import ExportError
from rcnn_export.repository.progress import still_running
from rcnn_export.repository.write import export_repository


def main(argv: list[str] | None = None) -> int:
    """Exports a detector; exit code 0, or 1 with the reason on stderr."""
    arguments = _parser().parse_args(argv)
    # The file is given because sys.stdout is another one while torch exports and its notes are hidden.
    console = Console(highlight=False, file=sys.stdout)
    started = time.monotonic()

    def report(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.1f} s[/dim]  {line}", soft_wrap=True)

    try:
        report(f"Loading {arguments.model} with weights {arguments.weights}")
        with still_running(report, f"loading {arguments.model}"):
            detector = load_detector(
                arguments.model, arguments.weights, arguments.num_classes, arguments.labels
            )
        name = arguments.name or arguments.detector
        options = _engine_options(arguments, detector)
        written = export_repository(detector, arguments.repository, name, report, options)
    except (ExportError, RepositoryError) as error:
        print(f"rcnn-export: {error}", file=sys.stderr)
        return 1
    report("Done")
    console.print(_summary(detector, arguments.repository, written))
    console.print(f"Serve it:  rcnn-serve {arguments.repository} --models {name}", soft_wrap=True)
    return 0


def _engine_options(arguments: argparse.Namespace, detector: Detector) -> EngineOptions:
    """The options that the arguments give.

    Raises:
        ExportError: an option of plans without ``--engine tensorrt``, or shapes that cannot be profiles.
    """
    plan = PlanOptions(
        arguments.version_compatible, arguments.hardware_compatible, tuple(arguments.compute_capability)
    )
    precision = PRECISIONS[arguments.precision]
    if arguments.engine != TENSORRT:
        if arguments.shapes or plan != PlanOptions():
            raise ExportError(
                "--shapes, --version-compatible, --hardware-compatible and --compute-capability are TensorRT's: "
                f"they need --engine {TENSORRT}"
            )
        return EngineOptions(arguments.engine, precision)
    return EngineOptions(TENSORRT, precision, plan_profiles(detector.model, arguments.shapes), plan)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rcnn-export",
        description="Fills a Triton model repository from a torchvision detector.",
        epilog="Example: rcnn-export faster_rcnn --model fasterrcnn_resnet50_fpn --weights my.pth "
        "--labels labels.txt --name my_detector",
    )
    parser.add_argument("detector", choices=["faster_rcnn"], help="the kind of detector")
    parser.add_argument(
        "--model",
        default="fasterrcnn_resnet50_fpn",
        help=f"one of {', '.join(TORCHVISION_MODELS)}, or package.module:function "
        "returning a FasterRCNN (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        default="DEFAULT",
        help="a .pth or .safetensors file, a torchvision weights name such as COCO_V1, "
        f"random to try an export without weights, or {AS_BUILT} for those that a function of yours gives its "
        "detector (default: %(default)s)",
    )
    parser.add_argument(
        "--num-classes", type=int, help="classes with the background (default: as the weights or labels have)"
    )
    parser.add_argument(
        "--labels", type=Path, help="text file, one class name a line, without the background"
    )
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path("model_repository"),
        help="the model repository to write into (default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=tuple(ENGINE_FILES),
        default=ONNX,
        help="onnx: runs anywhere, in ONNX Runtime; aoti: compiled by PyTorch for this machine's GPU, or CPU if "
        "it has none; tensorrt: built by TensorRT for this machine's GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default=FP32.name,
        help="of the networks; boxes and scores are computed in fp32 either way (default: %(default)s)",
    )
    plans = parser.add_argument_group("TensorRT plans")
    plans.add_argument(
        "--shapes",
        type=_shapes,
        action="append",
        default=[],
        metavar="BxHxW,BxHxW,BxHxW",
        help=f"the smallest, the best and the largest batch of padded pictures, such as {EXAMPLE}; "
        "once for each profile (default: one profile for what the detector's transform makes, up to 8 pictures)",
    )
    plans.add_argument(
        "--version-compatible", action="store_true", help="the plans run on later versions of TensorRT too"
    )
    plans.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="the plans run on every GPU from Ampere on, but slower",
    )
    plans.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="MAJOR.MINOR",
        help="build for GPUs of this kind on a machine without one; TensorRT-RTX only (default: this machine's GPU)",
    )
    parser.add_argument("--name", help="the served model's name (default: the kind of detector)")
    return parser


def _shapes(text: str) -> ShapeRange:
    try:
        return parse_shapes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _summary(detector: Detector, repository: Path, written: list[Path]) -> Table:
    table = Table()
    table.add_column(f"{len(detector.class_names) - 1} classes, in {repository}/")
    table.add_column("size", justify="right")
    for path in written:
        size = path.stat().st_size
        table.add_row(
            str(path.relative_to(repository)),
            f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
