"""Writes a detector into a Triton model repository: all of it, or nothing."""

import dataclasses
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rcnn_backend.contract.chain_types import FUSED, PIXELS
from rcnn_backend.contract.configs import read_config
from rcnn_backend.contract.manifest import sha256_of, write_manifest
from rcnn_backend.contract.parameters import PreprocessParameters, read_parameters

from rcnn_export.detector.load import Detector, check_detector
from rcnn_export.engines.aoti_export import compile_package
from rcnn_export.engines.cudnn_export import write_program
from rcnn_export.engines.graph_checks import clean_graph
from rcnn_export.engines.onnx_export import export_onnx
from rcnn_export.engines.options import (
    AOTI,
    CUDNN,
    DEFAULT_ENGINE,
    ENGINE_FILES,
    ONNX,
    TENSORRT,
    EngineOptions,
)
from rcnn_export.engines.plan_shapes import plan_profiles
from rcnn_export.engines.quantize import check_quantizer
from rcnn_export.engines.quantize_fused import Layers
from rcnn_export.engines.stages import Stage, engine_stages
from rcnn_export.errors import ExportError
from rcnn_export.repository.average_precision import read_annotated
from rcnn_export.repository.calibrate import find_pictures
from rcnn_export.repository.calibrate_fused import calibrate_fused
from rcnn_export.repository.configs import template_of, write_configs
from rcnn_export.repository.names import check_name, outdated_models
from rcnn_export.repository.progress import still_running
from rcnn_export.repository.quantize import calibrate_graphs, quantize_graphs
from rcnn_export.repository.swap import swap_folders

VERSION = "1"


def export_repository(
    detector: Detector,
    repository: Path,
    name: str,
    report: Callable[[str], None] = lambda _: None,
    options: EngineOptions = DEFAULT_ENGINE,
) -> list[Path]:
    """Exports the engines and writes every model of the detector ``name`` into ``repository``.

    The new folders are completed in a temporary folder in ``repository`` and then replace the old ones. If anything fails,
    the older export is unchanged. Models of the older export that the new one does not have, because it is of another
    family, are removed.

    Args:
        report: called with a line of text as each part begins, and every half minute until it ends.
        options: what the networks are compiled to.

    Returns:
        The files written, engines and configs, in the order in which the models run.

    Raises:
        ExportError: the name is not a Triton model name or would replace another detector's model, the detector
            cannot be exported, a graph cannot be an engine, the shapes cannot be profiles, INT8 cannot be calibrated or
            loses too much, or the repository cannot be written.
        RepositoryError: a TensorRT plan cannot be built.
    """
    check_detector(detector.model)
    check_name(name, detector.chain, repository)
    models, outdated = detector.chain.model_names(name), outdated_models(name, detector.chain, repository)
    if options.engine == TENSORRT and not options.profiles:
        options = dataclasses.replace(options, profiles=plan_profiles(detector.model))
    if options.engine == TENSORRT:
        _plan_build().check_target(options.plan)  # before minutes of export
    calibration = options.calibration
    if calibration:
        check_quantizer()
        report(f"Looking at the pictures in {calibration.folder}")
        limits = read_parameters(
            PreprocessParameters, read_config(template_of(detector.chain, "_preprocess"))
        )
        pictures = find_pictures(calibration, limits.max_image_pixels, report)
        goal = calibration.ap_goal
        annotated = read_annotated(goal.annotations, goal.pictures, detector, report) if goal else None
    try:
        repository.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".rcnn-export-", dir=repository))
    except OSError as error:
        raise ExportError(f"cannot write to the repository {repository}: {error.strerror}") from error
    try:
        report("Deriving the configs")
        write_configs(detector, name, options, staging)
        for model in models:
            adapter = template_of(detector.chain, model.removeprefix(name)) / VERSION / "model.py"
            if adapter.is_file():
                shutil.copyfile(adapter, staging / model / VERSION / "model.py")
        labels = "".join(f"{class_name}\n" for class_name in detector.class_names)
        for whole in (name, f"{name}_{PIXELS}", f"{name}_{FUSED}"):
            (staging / whole / "labels.txt").write_text(labels, encoding="utf-8")
        stages = {
            staging / f"{name}_{stage.name}" / VERSION: stage
            for stage in engine_stages(detector.model, options.precision)
        }
        abouts: dict[Path, dict[str, str]] = {}
        about_all: dict[str, Any] = {}
        int8: dict[str, Layers] = {}
        if calibration and options.engine == CUDNN:
            int8, about_all = calibrate_fused(
                detector,
                name,
                staging / "calibration",
                calibration,
                pictures,
                annotated,
                repository,
                report,
            )
        for version_dir, stage in stages.items():
            report(f"Exporting the {stage.name}, {options.precision.name}, for {options.engine}")
            with still_running(report, f"exporting the {stage.name}"):
                abouts[version_dir] = _write_engine(stage, options, version_dir, report, int8.get(stage.name))
        if calibration and options.engine != CUDNN:
            paths = {stage.name: folder / ENGINE_FILES[ONNX] for folder, stage in stages.items()}
            calibrated = calibrate_graphs(
                staging, name, paths, calibration, pictures, annotated, repository, report
            )
            quantize_graphs(calibrated, paths)
            about_all = calibrated.about
        for version_dir, stage in stages.items():
            _write_manifest(stage, detector, options, version_dir, abouts[version_dir], about_all)
            if options.engine == TENSORRT:
                report(f"Building the {stage.name}'s TensorRT plan")
                builder = _plan_build()
                profiles, timings = options.profiles[stage.name], builder.timing_cache(repository)
                with still_running(report, f"building the {stage.name}'s TensorRT plan"):
                    builder.build_plan(version_dir, profiles, options.plan, timings)
        if outdated:
            report(
                f"Removing {', '.join(outdated)} of the earlier export, which {detector.chain.family} does not have"
            )
        swap_folders(staging, repository, models, outdated)
    except OSError as error:
        raise ExportError(f"cannot write to the repository {repository}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [path for model in models for path in sorted((repository / model).rglob("*")) if path.is_file()]


def _write_engine(
    stage: Stage,
    options: EngineOptions,
    version_dir: Path,
    report: Callable[[str], None],
    int8: Layers | None,
) -> dict[str, str]:
    """Writes the engine, or the graph that its plan is built from; returns the manifest's entry about it.

    Args:
        int8: the layers that become INT8 for cuDNN.
    """
    path = version_dir / _written_file(options)
    if options.engine == AOTI:
        return {"target": compile_package(stage, path)}
    if options.engine == CUDNN:
        fusions = write_program(stage, path, int8)
        if fusions.total:
            report(f"In the {stage.name}, {fusions}")
        return {}
    path.write_bytes(clean_graph(export_onnx(stage)).SerializeToString())
    return {}


def _write_manifest(
    stage: Stage,
    detector: Detector,
    options: EngineOptions,
    version_dir: Path,
    about: Mapping[str, str],
    calibration: Mapping[str, Any],
) -> None:
    path = version_dir / _written_file(options)
    manifest: dict[str, Any] = {
        "stage": stage.name,
        "model": detector.model_name,
        "weights": _absolute(detector.weights),
        "weights_key": detector.weights_key,
        "batch_norm_eps": detector.batch_norm_eps,
        "weights_sha256": detector.weights_hash,
        "class_names": detector.class_names,
        "keypoint_names": detector.keypoint_names,
        "precision": options.precision.name,
        "inputs": stage.inputs,
        "outputs": stage.outputs,
        "shapes": stage.axes,
        "engines": {},
        "versions": {
            package: importlib.metadata.version(package) for package in ("torch", "torchvision", "onnx")
        },
        **calibration,
    }
    if options.engine != TENSORRT:  # a plan records its graph
        manifest["engines"][path.name] = {**about, "sha256": sha256_of(path)}
    write_manifest(version_dir, manifest)


def _written_file(options: EngineOptions) -> str:
    return ENGINE_FILES[ONNX if options.engine == TENSORRT else options.engine]


def _absolute(weights: str) -> str:
    """The absolute path of a weights file, so that it is found from any folder; a name is returned unchanged."""
    return str(Path(weights).resolve()) if Path(weights).is_file() else weights


def _plan_build() -> ModuleType:
    """The builder of plans, which needs TensorRT."""
    from rcnn_backend.engines import plan_build

    return plan_build
