"""The command ``rcnn-export``: a torchvision detector into a Triton model repository."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcnn_backend.contract.chain import FASTER_RCNN
from rcnn_backend.contract.manifest import MANIFEST, PlanOptions
from rcnn_backend.errors import RepositoryError

from rcnn_export.commands.choices import ENGINES, EXAMPLE_SHAPES, INTERRUPTED, PRECISIONS, TORCHVISION_MODELS
from rcnn_export.errors import ExportError

# What takes seconds to import is imported where it is used: --help need not wait for it.
if TYPE_CHECKING:
    from rcnn_backend.engines.profiles import ShapeRange

    from rcnn_export.detector.load import Detector
    from rcnn_export.engines.options import EngineOptions

ONNX, TENSORRT = "onnx", "tensorrt"


def main(argv: list[str] | None = None) -> int:
    """Exports a detector; exit code 0, 1 with the reason on stderr, or 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    name = arguments.name or arguments.detector
    try:
        return _export(arguments, name)
    except (ExportError, RepositoryError) as error:
        print(f"rcnn-export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"rcnn-export: interrupted; {arguments.repository} is as it was", file=sys.stderr)
        return INTERRUPTED


def _export(arguments: argparse.Namespace, name: str) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    started = time.monotonic()

    def report(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.1f} s[/dim]  {line}", soft_wrap=True)

    report(f"Loading {arguments.model} with weights {arguments.weights}")
    from rcnn_export.detector.load import load_detector
    from rcnn_export.repository.write import export_repository

    detector = load_detector(arguments.model, arguments.weights, arguments.num_classes, arguments.labels)
    options = _engine_options(arguments, detector)
    if replaced := _describe(arguments.repository, name):
        report(f"This replaces {name} ({replaced})")
    written = export_repository(detector, arguments.repository, name, report, options)
    report("Done")
    console.print(_summary(detector, name, arguments.repository, written), soft_wrap=True)
    repository = shlex.quote(str(arguments.repository))
    console.print(f"Serve it:  rcnn-serve {repository} --models {name}", soft_wrap=True)
    return 0


def _describe(repository: Path, name: str) -> str:
    """What the repository has under this name: the model, its engine and when it was written; empty for nothing."""
    path = repository / f"{name}_{FASTER_RCNN.engines[0].name}" / "1" / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        return f"{manifest['model']}, {Path(manifest['weights']).name}, {manifest['precision']}, exported {written}"
    except (OSError, ValueError, KeyError):
        return ""


def _engine_options(arguments: argparse.Namespace, detector: Detector) -> EngineOptions:
    """The options that the arguments give.

    Raises:
        ExportError: an option of plans without ``--engine tensorrt``, or shapes that cannot be profiles.
    """
    from rcnn_export.engines.options import EngineOptions
    from rcnn_export.engines.plan_shapes import plan_profiles
    from rcnn_export.engines.precision import PRECISIONS

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
    version = importlib.metadata.version("rcnn-export")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
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
        "or random to try an export without weights (default: %(default)s)",
    )
    parser.add_argument(
        "--num-classes", type=int, help="classes with the background (default: as the weights or labels have)"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        help="text file, one class name a line, without the background (default: those of published weights, else "
        "class_1, class_2, ...)",
    )
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path("model_repository"),
        help="the model repository to write into (default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=ONNX,
        help="onnx: runs anywhere, in ONNX Runtime; aoti: compiled by PyTorch for this machine's GPU, or CPU if "
        "it has none; tensorrt: built by TensorRT for this machine's GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of the networks; boxes and scores are computed in fp32 either way (default: %(default)s)",
    )
    plans = parser.add_argument_group("TensorRT plans")
    plans.add_argument(
        "--shapes",
        type=_shapes,
        action="append",
        default=[],
        metavar="BxHxW,BxHxW,BxHxW",
        help=f"the smallest, the best and the largest batch of padded pictures, such as {EXAMPLE_SHAPES}; "
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
    from rcnn_export.engines.plan_shapes import parse_shapes

    try:
        return parse_shapes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _summary(detector: Detector, name: str, repository: Path, written: list[Path]) -> str:
    """A line for all, and one for each engine, within 80 columns where the names are short."""
    classes = len(detector.class_names) - 1
    lines = [f"{name}: {classes} class{'' if classes == 1 else 'es'}, {len(written)} files in {repository}/"]
    for path in written:
        if (path.parent / MANIFEST).is_file() and path.name != MANIFEST:
            lines.append(f"  {path.stat().st_size / 1e6:7.1f} MB  {path.relative_to(repository)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
