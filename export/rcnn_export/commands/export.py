"""The command ``rcnn-export``: writes a torchvision detector into a Triton model repository."""

import argparse
import io
import shlex
import sys
import time
from pathlib import Path

from rcnn_backend.contract.chain import FASTER_RCNN
from rcnn_backend.contract.manifest import MANIFEST, PlanOptions, read_manifest
from rcnn_backend.errors import RepositoryError
from rich.console import Console
from rich.markup import escape

from rcnn_export.commands.export_arguments import parse
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.engines.options import (
    AOTI,
    METHODS,
    NUM_CALIBRATION_PICTURES,
    TENSORRT,
    ApGoal,
    Calibration,
    EngineOptions,
    precision_of,
)
from rcnn_export.engines.plan_shapes import plan_profiles
from rcnn_export.engines.precision import INT8
from rcnn_export.errors import INTERRUPTED, ExportError
from rcnn_export.repository.progress import still_running
from rcnn_export.repository.write import VERSION, export_repository

INT8_OPTIONS = (
    "calibrate",
    "calibration_pictures",
    "calibration_method",
    "keep_float",
    "most_ap_loss",
    "annotations",
)


def main(argv: list[str] | None = None) -> int:
    """Exports a detector; exit code 0, 1 with the reason on stderr, or 130 after Ctrl-C."""
    arguments = parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may contain any bytes
    try:
        return _export(arguments)
    except (ExportError, RepositoryError) as error:
        print(f"rcnn-export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"rcnn-export: interrupted; {arguments.repository} is unchanged", file=sys.stderr)
        return INTERRUPTED


def _export(arguments: argparse.Namespace) -> int:
    # The file is given because sys.stdout is replaced while torch exports, to hide its messages.
    console = Console(highlight=False, file=sys.stdout)
    started = time.monotonic()

    def report(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.1f} s[/dim]  {escape(line)}", soft_wrap=True)

    calibration = _calibration(arguments)
    report(f"Loading {arguments.model} with weights {arguments.weights}")
    with still_running(report, f"loading {arguments.model}"):
        detector = load_detector(
            arguments.model,
            arguments.weights,
            arguments.num_classes,
            arguments.labels,
            keypoints=arguments.keypoints,
            weights_key=arguments.weights_key,
            batch_norm_eps=arguments.batch_norm_eps,
            family=arguments.family,
            report=report,
        )
    name = arguments.name or detector.chain.family
    options = _engine_options(arguments, detector, calibration)
    if replaced := _describe(arguments.repository, name):
        report(f"This replaces {name} ({replaced})")
    written = export_repository(detector, arguments.repository, name, report, options)
    report("Done")
    print(_summary(detector, name, arguments.repository, written))
    print(f"Serve it:  rcnn-serve {shlex.quote(str(arguments.repository))} --models {name}")
    return 0


def _describe(repository: Path, name: str) -> str:
    """The export in the repository under this name: its model, weights, precision and time; empty if there is none."""
    version_dir = repository / f"{name}_{FASTER_RCNN.engines[0].name}" / VERSION
    try:
        manifest = read_manifest(version_dir)
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime((version_dir / MANIFEST).stat().st_mtime))
        return f"{manifest['model']}, {Path(manifest['weights']).name}, {manifest['precision']}, exported {written}"
    except (RepositoryError, OSError, ValueError, KeyError):
        return ""


def _engine_options(
    arguments: argparse.Namespace, detector: Detector, calibration: Calibration | None
) -> EngineOptions:
    """The options that the arguments give.

    Raises:
        ExportError: an option of plans without ``--engine tensorrt``, or shapes that cannot be profiles.
    """
    plan = PlanOptions(
        arguments.version_compatible, arguments.hardware_compatible, tuple(arguments.compute_capability)
    )
    precision = precision_of(arguments.engine, arguments.precision)
    if arguments.engine != TENSORRT:
        if arguments.shapes or plan != PlanOptions():
            raise ExportError(
                "--shapes, --version-compatible, --hardware-compatible and --compute-capability are options of TensorRT: "
                f"they need --engine {TENSORRT}"
            )
        return EngineOptions(arguments.engine, precision, calibration=calibration)
    return EngineOptions(
        TENSORRT, precision, plan_profiles(detector.model, arguments.shapes), plan, calibration
    )


def _calibration(arguments: argparse.Namespace) -> Calibration | None:
    """How INT8 is calibrated; None for another precision.

    Raises:
        ExportError: INT8 without pictures or for an engine that does not support it, or an option of INT8 without INT8.
    """
    if arguments.precision != INT8.name:
        given = [name for name in INT8_OPTIONS if getattr(arguments, name) not in (None, [])]
        if given:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            are = "is" if len(given) == 1 else "are"
            raise ExportError(f"{options} {are} for INT8: add --precision {INT8.name}")
        return None
    if arguments.engine == AOTI:
        raise ExportError(
            f"--engine {AOTI} has no INT8: use --engine cudnn, onnx or tensorrt, or --precision fp16"
        )
    if not arguments.calibrate:
        raise ExportError(
            "--precision int8 needs --calibrate FOLDER: a few hundred pictures like those that will be sent"
        )
    return Calibration(
        arguments.calibrate,
        arguments.calibration_pictures or NUM_CALIBRATION_PICTURES,
        arguments.calibration_method or METHODS[0],
        arguments.keep_float,
        _ap_goal(arguments),
    )


def _ap_goal(arguments: argparse.Namespace) -> ApGoal | None:
    """The AP that INT8 may cost; None if no limit was given.

    Raises:
        ExportError: a loss without annotations, or the reverse.
    """
    if arguments.most_ap_loss is None:
        if arguments.annotations:
            raise ExportError("--annotations is for --most-ap-loss: add it, or leave --annotations out")
        return None
    if not arguments.annotations:
        raise ExportError(
            "--most-ap-loss needs --annotations ANNOTATIONS PICTURES: a COCO instances file and the folder of its pictures"
        )
    return ApGoal(arguments.most_ap_loss, *arguments.annotations)


def _summary(detector: Detector, name: str, repository: Path, written: list[Path]) -> str:
    """One line for the whole export, and one for each engine; within 80 columns if the names are short."""
    classes = len(detector.class_names) - 1
    lines = [f"{name}: {classes} class{'' if classes == 1 else 'es'}, {len(written)} files in {repository}/"]
    for path in written:
        if (path.parent / MANIFEST).is_file() and path.name != MANIFEST:
            lines.append(f"  {path.stat().st_size / 1e6:7.1f} MB  {path.relative_to(repository)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
