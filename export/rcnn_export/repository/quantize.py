"""Converts the networks of an export, written as ONNX graphs in FP32, to INT8."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from rcnn_export.engines.options import Calibration
from rcnn_export.engines.quantize import find_layers, quantize
from rcnn_export.errors import ExportError
from rcnn_export.repository.average_precision import AnnotatedPictures
from rcnn_export.repository.calibrate import CalibrationPictures, Ranges, measure_ranges
from rcnn_export.repository.keep_float import Quantization, reach_goal
from rcnn_export.repository.sensitivity import NUM_PICTURES, Graphs

NAMES_SHOWN = 6


@dataclass(frozen=True)
class Calibrated:
    """A detector whose ranges are known.

    Attributes:
        graphs: its networks in FP32, by step.
        ranges: the ranges used to quantise them.
        kept: the layers that stay in FP32.
        about: the manifests' entry about the calibration.
    """

    graphs: Graphs
    ranges: Ranges
    kept: Collection[str]
    about: dict[str, Any]


def quantize_graphs(calibrated: Calibrated, paths: Mapping[str, Path]) -> None:
    """Writes the networks in INT8, each to its path."""
    for step, graph in calibrated.graphs.items():
        onnx.save(quantize(graph, calibrated.ranges[step], calibrated.kept), paths[step])


def calibrate_graphs(
    exported: Path,
    name: str,
    paths: Mapping[str, Path],
    calibration: Calibration,
    pictures: CalibrationPictures,
    annotated: AnnotatedPictures | None,
    cache_folder: Path,
    report: Callable[[str], None],
) -> Calibrated:
    """Calibrates the detector ``name`` in the repository ``exported``.

    Args:
        paths: of the networks in FP32, by step.
        annotated: the pictures on which the goal of ``calibration`` is measured, if it has a goal.

    Raises:
        ExportError: a layer to keep in FP32 does not exist, the cache cannot be used, or the goal cannot be reached.
    """
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
    return Calibrated(graphs, ranges, kept, {"calibration": {**about, "kept_float": sorted(kept)}})


def select_layers(layers: Sequence[str], wanted: Collection[str]) -> set[str]:
    """The layers with these names, and those inside modules with these names.

    Raises:
        ExportError: no layer has one of the names.
    """
    selected = set()
    for name in wanted:
        inside = {layer for layer in layers if layer == name or layer.startswith(f"{name}.")}
        if not inside:
            shown = ", ".join(layers[:NAMES_SHOWN])
            raise ExportError(
                f"--keep-float {name} is not a layer of this detector that INT8 quantises. It has {len(layers)}: "
                f"{shown}{', ...' * (len(layers) > NAMES_SHOWN)}; rcnn-verify --sensitivity lists them all"
            )
        selected |= inside
    return selected
