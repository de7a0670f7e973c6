"""Names the first layer of a graph whose output in TensorRT differs from ONNX Runtime's, with Polygraphy.

Both run the graph on the same input and keep the output of every layer; the layers are
compared in the graph's order. With that many outputs TensorRT fuses less than in the served
plan, so a layer that differs only when it is fused is not found.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from polygraphy import constants
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.logger import G_LOGGER
from rcnn_backend.contract.manifest import ONNX

from rcnn_export.errors import ExportError

G_LOGGER.module_severity = G_LOGGER.ERROR
Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class LayerDifference:
    """``difference``: the largest difference, as a fraction of the largest magnitude in the layer's output."""

    node: str
    operator: str
    output: str
    difference: float

    def __str__(self) -> str:
        return (
            f"the first layer that differs is {self.node} ({self.operator}): its output {self.output} differs by "
            f"{self.difference:.1e} of its largest magnitude"
        )


def check_builder() -> None:
    """Checks that TensorRT's builder, which ``bisect`` needs, is installed.

    Raises:
        ExportError: TensorRT's builder is not installed.
    """
    if importlib.util.find_spec("tensorrt") is None:
        raise ExportError(
            "--bisect needs the tensorrt package, which is not installed here: run `pip install tensorrt-cu13` "
            "with the version that built the plans"
        )


def bisect(version_dir: Path, inputs: Tensors, bound: float) -> LayerDifference | None:
    """The first layer of ``model.onnx`` whose output in TensorRT differs from ONNX Runtime's by more than ``bound``.

    Needs a GPU, and the builder that ``check_builder`` checks for.
    """
    from polygraphy.backend import trt

    path = version_dir / ONNX
    profile = trt.Profile()
    for name, array in inputs.items():
        profile.add(name, array.shape, array.shape, array.shape)
    network = trt.ModifyNetworkOutputs(
        trt.NetworkFromOnnxPath(str(path), strongly_typed=True), outputs=constants.MARK_ALL
    )
    config = trt.CreateConfig(tf32=False, profiles=[profile])
    compared = trt.TrtRunner(trt.EngineFromNetwork(network, config))
    return first_difference(onnx.load(path), compared, inputs, bound)


def first_difference(
    model: onnx.ModelProto, compared: BaseRunner, inputs: Tensors, bound: float
) -> LayerDifference | None:
    """The first layer of ``model`` whose floating-point output in ``compared`` differs from ONNX Runtime's.

    Args:
        bound: as a fraction of the largest magnitude in the output.
    """
    with compared:
        found = dict(compared.infer(dict(inputs)))
    with keep_all_outputs(model) as reference:
        expected = dict(reference.infer(dict(inputs)))
    for node in model.graph.node:
        for output in node.output:
            if output not in found or output not in expected:
                continue
            ours, theirs = np.asarray(found[output]), np.asarray(expected[output])
            if not np.issubdtype(theirs.dtype, np.floating):
                continue
            difference = _difference(ours, theirs)
            if not difference <= bound:
                return LayerDifference(node.name, node.op_type, output, difference)
    return None


def keep_all_outputs(model: onnx.ModelProto) -> OnnxrtRunner:
    """ONNX Runtime on the graph, keeping the output of every layer."""
    return OnnxrtRunner(
        SessionFromOnnx(BytesFromOnnx(ModifyOutputs(model, outputs=constants.MARK_ALL, copy=True)))
    )


def _difference(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    if not theirs.size:
        return 0.0
    apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max()
    return float(apart / (np.abs(theirs).max(initial=0) or 1))
