"""OpenVINO on the CPU, for the operators and the engines: compiles a network and runs it on NumPy arrays."""

import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy.typing as npt

# With this package, importing OpenVINO sends a report to its makers and writes into the home folder.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
from openvino import opset13 as opset  # noqa: E402

__all__ = ["VERSION", "compile_network", "openvino", "opset", "run_network"]

VERSION: str = openvino.__version__.partition("-")[0]
Inputs = Mapping[str, npt.NDArray[Any]] | Sequence[npt.NDArray[Any]]


def compile_network(network: openvino.Model | bytes, threads: int = 0) -> openvino.CompiledModel:
    """A network of OpenVINO, or an ONNX file's content, that computes in FP32 whatever the processor prefers.

    Args:
        threads: for one run; 0 means one for each core that this process may use.

    Raises:
        RuntimeError: the network cannot be read or compiled.
    """
    if isinstance(network, bytes):
        network = _core().read_model(network)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
        "ENABLE_CPU_PINNING": False,  # the steps' processes would all pin their threads to the same cores
    }
    return _core().compile_model(network, "CPU", options)


def run_network(
    network: openvino.CompiledModel, inputs: Inputs, output: npt.NDArray[Any] | None = None
) -> list[npt.NDArray[Any]]:
    """One run. No array is copied: the outputs are OpenVINO's memory, which they keep alive.

    Args:
        inputs: by name, or in the network's order.
        output: memory for the network's only output, in its very shape and type.
    """
    request = network.create_infer_request()
    if output is not None:
        request.set_output_tensor(openvino.Tensor(output, shared_memory=True))
    return list(request.infer(inputs, share_inputs=True, share_outputs=True).values())


@cache
def _core() -> openvino.Core:
    return openvino.Core()
