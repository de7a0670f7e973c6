"""Ranks the layers of a detector by the cost of each when only that layer is INT8."""

import dataclasses
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from rcnn_backend.contract.manifest import ONNX
from rcnn_backend.devices import Device
from rcnn_backend.engines.load import Engine
from rcnn_backend.engines.onnx import OnnxEngine
from rcnn_backend.pipeline import Pipeline

from rcnn_export.engines.quantize import find_ends, find_layers, give_back, quantize
from rcnn_export.repository.calibrate import Ranges
from rcnn_export.repository.progress import counted

NUM_PICTURES = 3
Arrays = Mapping[str, npt.NDArray[Any]]
Graphs = Mapping[str, onnx.ModelProto]  # the networks in FP32, by step


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """The cost of a layer when only that layer is INT8.

    Attributes:
        step: the network that the layer is in.
        error: the error of the output of the network's quantised part: its root mean square, relative to that of the
            output in FP32.
        ap_loss: points of AP, if it was measured.
    """

    step: str
    layer: str
    error: float
    ap_loss: float | None = None


def rank_layers(
    graphs: Graphs,
    ranges: Ranges,
    layers: Collection[str],
    repository: Path,
    name: str,
    pictures: Sequence[npt.NDArray[np.uint8]],
    report: Callable[[str], None],
) -> list[LayerCost]:
    """The error of each of these layers, the largest first.

    The inputs are those of the FP32 pipeline on ``pictures``, uint8 RGB [h, w, 3].

    Args:
        graphs: all networks of the detector ``name`` in ``repository``.
        ranges: the ranges used to quantise them.
    """
    batches = _record_inputs(graphs, repository, name, pictures)
    costs = []
    for step, graph in graphs.items():
        all_layers, ends = list(find_layers(graph)), find_ends(graph)
        ranked = [layer for layer in all_layers if layer in layers]
        watched = give_back(graph, ends)
        expected = _run(watched, batches[step])
        for layer in counted(ranked, report, f"Ranked {{}} of {{}} layers of the {step}"):
            found = _run(quantize_alone(watched, layer, ranges[step]), batches[step])
            costs.append(LayerCost(step, layer, _largest_error(ends, expected, found)))
    return sorted(costs, key=lambda cost: -cost.error)


def quantize_alone(graph: onnx.ModelProto, layer: str, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """The graph with one layer in INT8."""
    return quantize(graph, ranges, [other for other in find_layers(graph) if other != layer])


def load_graphs(
    repository: Path, name: str, graphs: Graphs, open_engine: Callable[[str, Path], Engine] | None = None
) -> Pipeline:
    """The detector ``name`` with these networks on the CPU.

    Args:
        open_engine: opens the ONNX file of a step; the file is deleted afterwards.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ONNX

        def load(version_dir: Path, device: Device) -> Engine:
            step = version_dir.parent.name.removeprefix(f"{name}_")
            onnx.save(graphs[step], path)
            return open_engine(step, path) if open_engine else OnnxEngine(path)

        return Pipeline.load(repository, name, load_engine=load)


class _RecordingEngine:
    """An engine that records its inputs."""

    is_capturable = False

    def __init__(self, path: Path) -> None:
        self._engine = OnnxEngine(path)
        self.batches: list[Arrays] = []

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        self.batches.append(dict(inputs))
        return self._engine.run(inputs)


def _record_inputs(
    graphs: Graphs, repository: Path, name: str, pictures: Sequence[npt.NDArray[np.uint8]]
) -> dict[str, list[Arrays]]:
    """The inputs of each network when the pipeline runs on the pictures, one by one."""
    engines = {}

    def open_engine(step: str, path: Path) -> Engine:
        engines[step] = _RecordingEngine(path)
        return engines[step]

    pipeline = load_graphs(repository, name, graphs, open_engine)
    for picture in pictures:
        pipeline.detect([picture])
    return {step: engine.batches for step, engine in engines.items()}


def _run(graph: onnx.ModelProto, batches: Sequence[Arrays]) -> list[Arrays]:
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(graph, Path(folder) / ONNX)
        engine = OnnxEngine(Path(folder) / ONNX)
    return [engine.run(batch) for batch in batches]


def _largest_error(names: Sequence[str], expected: Sequence[Arrays], found: Sequence[Arrays]) -> float:
    """The largest error among the tensors with these names; each error is over all batches."""
    errors = []
    for name in names:
        apart = sum(float(np.square(a[name] - b[name]).sum()) for a, b in zip(expected, found, strict=True))
        whole = sum(float(np.square(a[name]).sum()) for a in expected)
        errors.append((apart / whole) ** 0.5 if whole else 0.0)
    return max(errors)
