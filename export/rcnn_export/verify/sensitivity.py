"""The cost of each layer of an INT8 export: its networks are exported again in FP32, with one layer at a time in INT8."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from rcnn_backend.contract.chain import FASTER_RCNN
from rcnn_backend.contract.manifest import ONNX
from rcnn_backend.pipeline import VERSION
from rich import box
from rich.table import Table
from torchvision.models.detection import FasterRCNN

from rcnn_export.engines.graph_checks import clean_graph
from rcnn_export.engines.onnx_export import export_onnx
from rcnn_export.engines.options import CUDNN, ENGINE_FILES
from rcnn_export.engines.precision import INT8
from rcnn_export.engines.quantize import check_quantizer, find_layers, read_ranges
from rcnn_export.engines.stages import engine_stages
from rcnn_export.errors import ExportError
from rcnn_export.repository.average_precision import AnnotatedPictures, describe, largest_loss, measure_aps
from rcnn_export.repository.sensitivity import LayerCost, load_graphs, quantize_alone, rank_layers


def measure_costs(
    model: FasterRCNN,
    repository: Path,
    name: str,
    pictures: Sequence[npt.NDArray[np.uint8]],
    annotated: AnnotatedPictures | None,
    report: Callable[[str], None],
) -> list[LayerCost]:
    """The cost of every layer that is INT8 in the export ``name``, the costliest first.

    The cost is the AP lost on the annotated pictures, or without such pictures the error.

    Args:
        model: the torch detector that was exported.
        pictures: uint8 RGB [h, w, 3], on which the errors are measured.

    Raises:
        ExportError: no layer of the export is INT8, its networks are not ONNX graphs, or ONNX Runtime is not installed.
    """
    check_quantizer()
    if (repository / f"{name}_{FASTER_RCNN.engines[0].name}" / VERSION / ENGINE_FILES[CUDNN]).is_file():
        raise ExportError(
            f"--sensitivity ranks the layers of ONNX graphs, and {name} was exported with --engine {CUDNN}: export it "
            "with --engine onnx under another --name, and give that name; both have the same layers and ranges"
        )
    graphs, ranges, layers = {}, {}, []
    for stage in engine_stages(model, INT8):
        exported = onnx.load(repository / f"{name}_{stage.name}" / VERSION / ONNX)
        ranges[stage.name] = read_ranges(exported)
        if not ranges[stage.name]:  # no part of it is INT8
            graphs[stage.name] = exported
            continue
        report(f"Exporting the {stage.name} in FP32")
        graph = graphs[stage.name] = clean_graph(export_onnx(stage))
        float_weights = {tensor.name for tensor in exported.graph.initializer}
        layers += [
            layer for layer, nodes in find_layers(graph).items() if nodes[0].input[1] not in float_weights
        ]
    if not layers:
        raise ExportError(f"{name} has no INT8 layers: --sensitivity is for exports of --precision int8")
    costs = rank_layers(graphs, ranges, layers, repository, name, pictures, report)
    if annotated is None:
        return costs
    expected = measure_aps(load_graphs(repository, name, graphs), annotated, report)
    report(f"FP32: {describe(expected)}")
    with_loss = []
    for cost in costs:
        alone = quantize_alone(graphs[cost.step], cost.layer, ranges[cost.step])
        found = measure_aps(load_graphs(repository, name, {**graphs, cost.step: alone}), annotated, report)
        report(f"{cost.layer} alone in INT8: {describe(found)}")
        with_loss.append(dataclasses.replace(cost, ap_loss=largest_loss(expected, found)))
    return sorted(with_loss, key=lambda cost: -(cost.ap_loss or 0.0))


def make_cost_table(costs: Sequence[LayerCost], title: str) -> Table:
    """A row for each layer."""
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True)
    has_losses = any(cost.ap_loss is not None for cost in costs)
    for column in ("network", "layer"):
        table.add_column(column, no_wrap=True)
    for column in ("error", *["points of AP lost"] * has_losses):
        table.add_column(column, justify="right")
    for cost in costs:
        losses = [] if cost.ap_loss is None else [f"{cost.ap_loss:+.2f}"]
        table.add_row(cost.step, cost.layer, f"{cost.error:.2%}", *losses)
    return table
