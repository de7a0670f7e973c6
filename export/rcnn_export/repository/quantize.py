"""Turns the networks of an export, written in FP32, into INT8."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import onnx
from rcnn_backend.contract.manifest import ONNX
from rcnn_backend.pipeline import VERSION

from rcnn_export.engines.options import Calibration
from rcnn_export.engines.quantize import find_layers, quantize
from rcnn_export.errors import ExportError
from rcnn_export.repository.average_precision import AnnotatedPictures
from rcnn_export.repository.calibrate import CalibrationPictures, measure_ranges
from rcnn_export.repository.keep_float import Quantization, reach_goal
from rcnn_export.repository.sensitivity import NUM_PICTURES

NAMES_SHOWN = 6


def quantize_engines(
    exported: Path,
    name: str,
    steps: Sequence[str],
    calibration: Calibration,
    pictures: CalibrationPictures,
    annotated: AnnotatedPictures | None,
    cache_folder: Path,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Replaces the ONNX graphs of these steps of the detector ``name`` in the repository ``exported``.

    Args:
        annotated: what the goal of ``calibration`` is measured on, if it has one.

    Returns:
        what manifests say of it.

    Raises:
        ExportError: a layer to keep in FP32 is not there, the cache cannot be used, or the goal cannot be reached.
    """
    paths = {step: exported / f"{name}_{step}" / VERSION / ONNX for step in steps}
    graphs = {step: onnx.load(path) for step, path in paths.items()}
    layers = [layer for graph in graphs.values() for layer in find_layers(graph)]
    kept = select_layers(layers, calibration.keep_float)
    report(f"Calibrating {len(layers) - len(kept)} of {len(layers)} layers, {calibration.method}")
    ranges = measure_ranges(exported, name, pictures, calibration.method, cache_folder, report)
    about: dict[str, Any] = {
        "method": calibration.method,
        "pictures": len(pictures.paths),
        "pictures_sha256": pictures.sha256,
    }
    if calibration.ap_goal and annotated:
        trial = Quantization(exported, name, graphs, ranges, layers, kept)
        first = [pictures.decode(path) for path in pictures.paths[:NUM_PICTURES]]
        kept, about["ap"] = reach_goal(trial, calibration.ap_goal.most_loss, first, annotated, report)
    for step, graph in graphs.items():
        onnx.save(quantize(graph, ranges[step], kept), paths[step])
    return {"calibration": {**about, "kept_float": sorted(kept)}}


def select_layers(layers: Sequence[str], wanted: Collection[str]) -> set[str]:
    """The layers with these names, and those inside modules with these names.

    Raises:
        ExportError: a name is that of none.
    """
    selected = set()
    for name in wanted:
        inside = {layer for layer in layers if layer == name or layer.startswith(f"{name}.")}
        if not inside:
            shown = ", ".join(layers[:NAMES_SHOWN])
            raise ExportError(
                f"--keep-float {name} is no layer of this detector that INT8 quantises. It has {len(layers)}: "
                f"{shown}{', ...' * (len(layers) > NAMES_SHOWN)}; rcnn-verify --sensitivity lists them all"
            )
        selected |= inside
    return selected
