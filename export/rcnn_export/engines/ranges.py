"""Measures the range of every tensor to be quantised, while a detector runs on calibration pictures."""

import contextlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
import onnx
from rcnn_backend.engines.onnx import OnnxEngine

from rcnn_export.engines.options import MAX, PERCENTILE
from rcnn_export.engines.quantize import find_layers, give_back, layer_inputs

Arrays = Mapping[str, npt.NDArray[Any]]
NUM_BINS = 2048
KEPT_PERCENT = 99.99  # of the values are within a percentile's range


class _Collector(Protocol):
    def add(self, arrays: Arrays) -> None:
        """Takes the tensors of one batch."""

    def ranges(self) -> dict[str, float]:
        """The magnitude that becomes 127, for each tensor seen."""


class CalibratingEngine:
    """A graph on the CPU that runs like any engine, and measures the inputs of its layers.

    Args:
        path: an FP32 ONNX file.
        method: ``max``, the largest magnitude, or ``percentile``, below which KEPT_PERCENT of the values are.

    Attributes:
        measured: the names of the tensors.
    """

    is_capturable = False

    def __init__(self, path: Path, method: str) -> None:
        model = onnx.load(path)
        self._outputs = [output.name for output in model.graph.output]
        self.measured = layer_inputs(find_layers(model))
        self._collector: _Collector = _Largest() if method == MAX else _Histograms()
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(give_back(model, self.measured), Path(folder) / path.name)
            self._engine = OnnxEngine(Path(folder) / path.name)

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Runs one batch; measures its tensors."""
        tensors = {**inputs, **self._engine.run(inputs)}
        self._collector.add({name: tensors[name] for name in self.measured})
        return {name: tensors[name] for name in self._outputs}

    def ranges(self) -> dict[str, float]:
        """The magnitude that becomes 127, for each tensor that a layer reads. Empty if nothing ran."""
        return self._collector.ranges()


class _Largest:
    def __init__(self) -> None:
        self._ranges: dict[str, float] = {}

    def add(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            largest = max(abs(float(array.min())), abs(float(array.max())))
            self._ranges[name] = max(self._ranges.get(name, 0.0), largest)

    def ranges(self) -> dict[str, float]:
        return self._ranges


class _Histograms:
    """ONNX Runtime's histograms, one batch after another: all batches at once would need memory for all their tensors."""

    def __init__(self) -> None:
        from onnxruntime.quantization.calibrate import HistogramCollector  # installed by the extra "int8"

        self._collector = HistogramCollector(
            PERCENTILE,
            symmetric=False,  # concerns the histogram, whose bins then all have the same width
            num_bins=NUM_BINS,
            num_quantized_bins=None,  # for the entropy method only
            percentile=KEPT_PERCENT,
            scenario=None,  # for another method only
        )

    def add(self, arrays: Arrays) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._collector.collect({name: [array] for name, array in arrays.items()})

    def ranges(self) -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            found = self._collector.compute_collection_result()
        return {name: max(abs(float(low)), abs(float(high))) for name, (low, high, *_) in found.items()}
