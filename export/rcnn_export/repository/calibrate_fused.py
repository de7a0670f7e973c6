"""The INT8 layers of an export for cuDNN, found and calibrated in ONNX graphs that are written only for this purpose.

So the layers, their ranges and the stored calibrations are those of an ONNX export of the same detector.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from rcnn_backend.contract.manifest import ONNX as GRAPH
from rcnn_backend.pipeline import VERSION

from rcnn_export.detector.load import Detector
from rcnn_export.engines.graph_checks import clean_graph
from rcnn_export.engines.onnx_export import export_onnx
from rcnn_export.engines.options import ONNX, Calibration, EngineOptions
from rcnn_export.engines.precision import INT8
from rcnn_export.engines.quantize import find_layers
from rcnn_export.engines.quantize_fused import Layers
from rcnn_export.engines.stages import engine_stages
from rcnn_export.repository.average_precision import AnnotatedPictures
from rcnn_export.repository.calibrate import CalibrationPictures
from rcnn_export.repository.configs import write_configs
from rcnn_export.repository.progress import still_running
from rcnn_export.repository.quantize import calibrate_graphs


def calibrate_fused(
    detector: Detector,
    name: str,
    folder: Path,
    calibration: Calibration,
    pictures: CalibrationPictures,
    annotated: AnnotatedPictures | None,
    cache_folder: Path,
    report: Callable[[str], None],
) -> tuple[dict[str, Layers], dict[str, Any]]:
    """The layers that become INT8, by step, and the manifests' entry about their calibration.

    Args:
        folder: a new folder, for the detector in FP32.
        annotated: the pictures on which the goal of ``calibration`` is measured, if it has a goal.

    Raises:
        ExportError: a graph cannot be exported, a layer to keep in FP32 does not exist, the cache cannot be used, or the
            goal cannot be reached.
    """
    write_configs(detector, name, EngineOptions(ONNX, INT8), folder)
    paths, reads = {}, {}
    for stage in engine_stages(detector.model, INT8):
        report(f"Exporting the {stage.name}, fp32, to calibrate it")
        with still_running(report, f"exporting the {stage.name}"):
            graph = export_onnx(stage)
        # In the order in which torch runs them; clean_graph does not keep this order.
        reads[stage.name] = {
            layer: [node.input[0] for node in nodes] for layer, nodes in find_layers(graph).items()
        }
        paths[stage.name] = folder / f"{name}_{stage.name}" / VERSION / GRAPH
        onnx.save(clean_graph(graph), paths[stage.name])
    calibrated = calibrate_graphs(folder, name, paths, calibration, pictures, annotated, cache_folder, report)
    layers: dict[str, Layers] = {
        step: {
            layer: [calibrated.ranges[step][tensor] for tensor in tensors]
            for layer, tensors in by_layer.items()
            if layer not in calibrated.kept
        }
        for step, by_layer in reads.items()
    }
    return layers, calibrated.about
