"""OpenVINO on the CPU, for the operators and the engines: compiles a network and runs it on NumPy arrays."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt

# If this package can be imported, importing OpenVINO sends a report to its makers and writes to the home folder.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
from openvino import opset13 as opset  # noqa: E402

__all__ = ["VERSION", "compile_network", "openvino", "opset", "run_network"]

VERSION: str = openvino.__version__.partition("-")[0]
Inputs = Mapping[str, npt.NDArray[Any]] | Sequence[npt.NDArray[Any]]
CPU_INFO = Path("/proc/cpuinfo")
VNNI = {"avx512_vnni", "avx_vnni"}


def compile_network(network: openvino.Model | bytes, threads: int = 0) -> openvino.CompiledModel:
    """Compiles an OpenVINO network, or the content of an ONNX file. It computes in FP32, whatever the processor prefers.

    Only layers between INT8 nodes compute in INT8, and only on a processor that does so exactly; on others they compute the
    same values in FP32.

    Args:
        threads: how many threads a run uses; 0 means one for each core that this process may use.

    Raises:
        RuntimeError: the network cannot be read or compiled.
    """
    if isinstance(network, bytes):
        network = _core().read_model(network)
        _average_axis_by_axis(network)
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
        "ENABLE_CPU_PINNING": False,  # the steps' processes would all pin their threads to the same cores
    }
    if not sums_int8_exactly():
        options["LP_TRANSFORMS_MODE"] = False
    return _core().compile_model(network, "CPU", options)


@cache
def sums_int8_exactly() -> bool:
    """Whether OpenVINO's INT8 kernels sum products exactly here. On x86-64 that needs VNNI: without it, the sum of two
    products has 16 bits and saturates.
    """
    if platform.machine() != "x86_64":
        return True
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not VNNI.isdisjoint(flags.split())


def run_network(
    network: openvino.CompiledModel, inputs: Inputs, output: npt.NDArray[Any] | None = None
) -> list[npt.NDArray[Any]]:
    """Runs the network once. No array is copied: the outputs are views of OpenVINO's memory and keep it alive.

    Args:
        inputs: by name, or in the network's order.
        output: array for the network's only output, with exactly its shape and type.
    """
    request = network.create_infer_request()
    if output is not None:
        request.set_output_tensor(openvino.Tensor(output, shared_memory=True))
    return list(request.infer(inputs, share_inputs=True, share_outputs=True).values())


def _average_axis_by_axis(network: openvino.Model) -> None:
    """Splits each mean over several axes into a mean for each axis, with an operator between them.

    OpenVINO adds all elements one after another, and merges consecutive means. For a million pixels, most of them
    equal, this loses a digit or two.
    """
    for node in network.get_ops():
        if not _is_mean(node):
            continue
        source, axes = node.input_value(0), _axes(node)
        before = source.get_node()
        if _is_mean(before) and before.get_keep_dims():
            source, axes = before.input_value(0), _axes(before) + axes
        rank = source.get_partial_shape().rank
        if len(axes) < 2 or rank.is_dynamic:
            continue
        axes = [axis % rank.get_length() for axis in axes]
        for axis in axes[:-1]:
            source = opset.unsqueeze(opset.reduce_mean(source, [axis], False), [axis]).output(0)
        source = opset.reduce_mean(source, axes[-1:], True).output(0)
        if not node.get_keep_dims():
            source = opset.squeeze(source, axes).output(0)
        node.output(0).replace(source)


def _is_mean(node: openvino.Node) -> bool:
    """Whether the node is a mean over axes that are constants."""
    if node.get_type_name() != "ReduceMean":
        return False
    is_known: bool = node.input_value(1).get_node().get_type_name() == "Constant"
    return is_known


def _axes(node: openvino.Node) -> list[int]:
    axes: list[int] = node.input_value(1).get_node().data.reshape(-1).tolist()
    return axes


@cache
def _core() -> openvino.Core:
    return openvino.Core()
