"""Ranks the layers of an INT8 export by what each costs when it alone is INT8."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from rcnn_backend.contract.manifest import ONNX
from rcnn_backend.devices import Device
from rcnn_backend.engines.onnx import OnnxEngine
from rcnn_backend.pipeline import VERSION, Pipeline
from rich import box
from rich.table import Table
from torchvision.models.detection import FasterRCNN

from rcnn_export.engines.graph_checks import clean_graph
from rcnn_export.engines.onnx_export import export_onnx
from rcnn_export.engines.precision import INT8
from rcnn_export.engines.quantize import find_ends, find_layers, give_back, quantize, read_ranges
from rcnn_export.engines.stages import engine_stages
from rcnn_export.errors import ExportError

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class LayerCost:
    """``error``: of what the network's quantised part gives, root of the mean square relative to that in FP32."""

    step: str
    layer: str
    error: float


def rank_layers(
    model: FasterRCNN,
    repository: Path,
    name: str,
    pictures: Sequence[npt.NDArray[np.uint8]],
    report: Callable[[str], None],
) -> list[LayerCost]:
    """The cost of every layer that is INT8 in the export ``name``, the costliest first.

    What a layer reads is what the FP32 pipeline makes of the pictures, uint8 RGB [h, w, 3].

    Args:
        model: the torch detector that was exported.

    Raises:
        ExportError: no layer of the export is INT8.
    """
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        graphs = {}
        for stage in engine_stages(model, INT8):
            report(f"Exporting the {stage.name} in FP32")
            graphs[stage.name] = clean_graph(export_onnx(stage))
        batches = _record_inputs(graphs, repository, name, pictures, Path(folder))
        for step, graph in graphs.items():
            exported = onnx.load(repository / f"{name}_{step}" / VERSION / ONNX)
            ranges, float_weights = read_ranges(exported), {t.name for t in exported.graph.initializer}
            layers = find_layers(graph)
            quantized = [layer for layer, nodes in layers.items() if nodes[0].input[1] not in float_weights]
            report(f"Quantising each of the {len(quantized)} layers of the {step}")
            watched = give_back(graph, find_ends(graph))
            expected = _run(watched, batches[step], Path(folder))
            for layer in quantized:
                alone = quantize(watched, ranges, [other for other in layers if other != layer])
                found = _run(alone, batches[step], Path(folder))
                costs.append(LayerCost(step, layer, _largest_error(find_ends(graph), expected, found)))
    if not costs:
        raise ExportError(f"{name} has no INT8 layers: --sensitivity is for exports of --precision int8")
    return sorted(costs, key=lambda cost: -cost.error)


def make_cost_table(costs: Sequence[LayerCost], title: str) -> Table:
    """A row for each layer."""
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True)
    for column in ("network", "layer"):
        table.add_column(column, no_wrap=True)
    table.add_column("error", justify="right")
    for cost in costs:
        table.add_row(cost.step, cost.layer, f"{cost.error:.2%}")
    return table


class _RecordingEngine:
    """An engine that keeps what it is given."""

    is_capturable = False

    def __init__(self, path: Path) -> None:
        self._engine = OnnxEngine(path)
        self.batches: list[Arrays] = []

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        self.batches.append(dict(inputs))
        return self._engine.run(inputs)


def _record_inputs(
    graphs: Mapping[str, onnx.ModelProto],
    repository: Path,
    name: str,
    pictures: Sequence[npt.NDArray[np.uint8]],
    folder: Path,
) -> dict[str, list[Arrays]]:
    """What each network is given when the pipeline with these networks runs on the pictures, one by one."""
    engines = {}

    def load(version_dir: Path, device: Device) -> _RecordingEngine:
        step = version_dir.parent.name.removeprefix(f"{name}_")
        onnx.save(graphs[step], folder / ONNX)
        engines[step] = _RecordingEngine(folder / ONNX)
        return engines[step]

    pipeline = Pipeline.load(repository, name, load_engine=load)
    for picture in pictures:
        pipeline.detect([picture])
    return {step: engine.batches for step, engine in engines.items()}


def _run(graph: onnx.ModelProto, batches: Sequence[Arrays], folder: Path) -> list[Arrays]:
    onnx.save(graph, folder / ONNX)
    engine = OnnxEngine(folder / ONNX)
    return [engine.run(batch) for batch in batches]


def _largest_error(names: Sequence[str], expected: Sequence[Arrays], found: Sequence[Arrays]) -> float:
    """The largest over the tensors of these names; each over all batches."""
    errors = []
    for name in names:
        apart = sum(float(np.square(a[name] - b[name]).sum()) for a, b in zip(expected, found, strict=True))
        whole = sum(float(np.square(a[name]).sum()) for a in expected)
        errors.append((apart / whole) ** 0.5 if whole else 0.0)
    return max(errors)
