#!/usr/bin/env python3
"""Times the RPN engine with fused convolutions on this GPU, as a whole and for each convolution.

Each convolution is compared with torch's and with its theoretical minimum (the floor).

    python tests/benchmarks/convolutions.py --precision fp16 --batches 8 1 --json convolutions.json

If a part fails, its error is printed and the others still run. Weights are random, and the INT8 ranges come from a
random picture.
"""

import argparse
import collections
import copy
import json
import math
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cupy
import torch
from convolutions_int8 import int8_error_of, observe_ranges, random_int8_tensors
from rcnn_backend.contract.manifest import write_manifest
from rcnn_backend.devices import Gpu
from rcnn_backend.engines.convolution import Convolution, convolve
from rcnn_backend.engines.convolution_int8 import describe_int8
from rcnn_backend.engines.convolution_plans import Plan, Tensors, plans_of
from rcnn_backend.engines.cudnn import CudnnEngine
from rcnn_backend.engines.graphs import GraphCache
from rcnn_export.detector.load import load_detector
from rcnn_export.engines.cudnn_export import write_program
from rcnn_export.engines.options import CUDNN, precision_of
from rcnn_export.engines.precision import FP16, FP32, INT8
from rcnn_export.engines.stages import Stage, engine_stage
from stages import measure_bandwidth, measure_matrix_rate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.dlpack import from_dlpack

RUNS = 30
TOP_KERNELS = 25
CUDA = torch.device("cuda", 0)


def main() -> None:
    """Measures and prints; writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fasterrcnn_resnet50_fpn")
    parser.add_argument("--precision", choices=(FP16.name, FP32.name, INT8.name), default=FP16.name)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1344], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    precision = precision_of(CUDNN, arguments.precision)

    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(CUDA), "precision": precision.name}
    report |= {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "batches": {}}
    print(report)
    model, int8 = load_detector(arguments.model, "random").model, None
    if precision.is_quantized:
        module = copy.deepcopy(engine_stage(model, "rpn").module).to(CUDA)
        int8 = observe_ranges(module, torch.randn(1, 3, *arguments.size, device=CUDA))
        del module
    stage = engine_stage(model, "rpn", precision)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.cudnn.pt2"
        report["export_s"], fusions = timed_s(lambda: write_program(stage, path, int8))
        names = {"inputs": stage.inputs, "outputs": stage.outputs, "versions": {"torch": torch.__version__}}
        write_manifest(path.parent, names)
        device = Gpu(0)
        with device.active():
            report["load_s"], engine = timed_s(lambda: CudnnEngine(path, device))
            print(f"{fusions}; exported in {report['export_s']:.1f} s, loaded in {report['load_s']:.1f} s")
            rates = measure_bandwidth(CUDA), measure_matrix_rate(CUDA, precision.dtype)
            for batch in arguments.batches:
                shape = (batch, 3, *arguments.size)
                found = attempt(lambda: measure(engine, device, stage, shape, rates))  # noqa: B023
                report["batches"][batch] = found
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, default=str))


def measure(
    engine: CudnnEngine, device: Gpu, stage: Stage, shape: tuple[int, ...], rates: tuple[float, float]
) -> dict[str, Any]:
    """The engine as a CUDA graph, its kernels, its error, and its convolutions one by one."""
    pictures = cupy.from_dlpack(torch.randn(shape, device=CUDA, dtype=stage.example[0].dtype))
    found: dict[str, Any] = {}
    found["first_run_s"], _ = timed_s(lambda: run_and_wait(engine, device, pictures))
    graphs = GraphCache(lambda x: list(engine.run({"input": x}).values()), device)
    for _ in range(2):
        graphs(pictures)
    found["graph_ms"] = time_on_gpu_ms(device, lambda: graphs(pictures))
    found["call_by_call_ms"] = time_on_gpu_ms(device, lambda: engine.run({"input": pictures}))
    print(
        f"\nbatch {shape[0]}, {shape[2]}x{shape[3]}: {found['graph_ms']:.2f} ms as a CUDA graph, "
        f"{found['call_by_call_ms']:.2f} call by call; the first run took {found['first_run_s']:.1f} s"
    )
    found["errors"] = attempt(lambda: compare(engine, stage, pictures))
    found["kernels"] = attempt(lambda: profile(engine, device, pictures))
    recorder = Recorder()
    with recorder:
        engine.run({"input": pictures})
    found["convolutions"] = measure_convolutions(recorder.calls, rates)
    return found


def measure_convolutions(
    calls: collections.Counter[Convolution], rates: tuple[float, float]
) -> list[dict[str, Any]]:
    """A row for each convolution: how often it is called, its fastest plan, torch's time, and its floor."""
    header = ("x", "in", "kernels", "stride", "with", "ms", "torch", "floor", "all", "error", "plan")
    print("  {:>2} {:>17} {:>15} {:>6} {:>8} {:>7} {:>7} {:>7} {:>7} {:>8}  {}".format(*header))
    rows = []
    for convolution, count in calls.items():
        row = attempt(lambda: measure_convolution(convolution, count, rates))  # noqa: B023
        if "failed" in row:
            print(f"  {convolution} failed: {row['failed']}")
        rows.append(row)
    done = [row for row in rows if "failed" not in row]
    for key in ("ms", "torch_ms", "floor_ms"):
        print(f"  sum of {key}: {sum(row['count'] * row[key] for row in done):.2f}")
    return rows


def measure_convolution(convolution: Convolution, count: int, rates: tuple[float, float]) -> dict[str, Any]:
    """Measures and prints one row."""
    if convolution.dtype == torch.int8:
        tensors = random_int8_tensors(convolution, CUDA)
    else:
        tensors = random_tensors(convolution)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        timed = plans_of(CUDA).measure(convolution, tensors)
        best_ms, name, plan = timed[0]
        torch_ms = min((ms for ms, other, _ in timed if other.startswith("torch")), default=math.nan)
        measure_error = int8_error_of if convolution.dtype == torch.int8 else error_of
        error = measure_error(convolution, tensors, plan)
    floor_ms = floor_of(convolution, rates)
    parts = zip("brR", (convolution.has_bias, convolution.has_residual, convolution.relu), strict=True)
    shapes = ["x".join(map(str, shape)) for shape in (convolution.x, convolution.weight)]
    print(
        f"  {count:>2} {shapes[0]:>17} {shapes[1]:>15} {convolution.stride[0]:>6} "
        f"{''.join(letter for letter, has in parts if has):>8} {best_ms:7.3f} {torch_ms:7.3f} {floor_ms:7.3f} "
        f"{count * best_ms:7.2f} {error:8.1e}  {name}"
    )
    return {
        "convolution": convolution._asdict(),
        "count": count,
        "ms": best_ms,
        "torch_ms": torch_ms,
        "floor_ms": floor_ms,
        "error": error,
        "plan": name,
        "plans": [(other, ms) for ms, other, _ in timed],
    }


def random_tensors(convolution: Convolution) -> Tensors:
    def random(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, device=CUDA, dtype=convolution.dtype)
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    terms = convolution.weight[1] * convolution.weight[2] * convolution.weight[3]
    return (
        random(*convolution.x),
        random(*convolution.weight) / terms**0.5,
        random(convolution.weight[0]) if convolution.has_bias else None,
        random(*convolution.output) if convolution.has_residual else None,
    )


def error_of(convolution: Convolution, tensors: Tensors, plan: Plan) -> float:
    """The largest difference from FP32 in the first picture, as a share of the largest magnitude."""
    x, weight, bias, residual = (None if each is None else each.float() for each in tensors)
    assert x is not None
    assert weight is not None
    first = None if residual is None else residual[:1]
    expected = convolve(x[:1], weight, bias, first, *convolution.geometry, convolution.relu)
    return ((plan(*tensors)[:1] - expected).abs().max() / expected.abs().max()).item()


def floor_of(convolution: Convolution, rates: tuple[float, float]) -> float:
    """The fewest milliseconds that the bytes or the operations can take; INT8 runs at twice the rate of FP16."""
    bytes_per_ms, flop_per_ms = rates
    dtype, output = convolution.dtype, torch.Size(convolution.output).numel()
    given = torch.Size(convolution.x).numel() + torch.Size(convolution.weight).numel()
    moved = given * dtype.itemsize + output * (convolution.result_dtype or dtype).itemsize
    if convolution.has_residual:
        moved += output * (convolution.residual_dtype or dtype).itemsize
    flop = 2 * output * torch.Size(convolution.weight[1:]).numel()
    return max(moved / bytes_per_ms, flop / flop_per_ms / (1 + (dtype == torch.int8)))


class Recorder(TorchDispatchMode):
    """Counts the calls of the fused operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: collections.Counter[Convolution] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.rcnn.convolution.default:
            self.calls[Convolution.of(*args)] += 1
        elif func is torch.ops.rcnn.convolution_int8.default:
            self.calls[describe_int8(*args[:4], *args[6:])] += 1
        return func(*args, **(kwargs or {}))


def compare(engine: CudnnEngine, stage: Stage, pictures: cupy.ndarray) -> dict[str, float]:
    """The error of the first picture's features, relative to the module in FP32, as a share of the largest magnitude."""
    module = stage.module.float().to(CUDA)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = module(from_dlpack(pictures[:1]).float())
    found = engine.run({"input": pictures})
    errors = {}
    for name, theirs in zip(stage.outputs, expected, strict=True):
        if name.startswith("feature"):
            ours = from_dlpack(found[name])[:1].float()
            errors[name] = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print("  errors:", {name: f"{error:.1e}" for name, error in errors.items()})
    return errors


def profile(engine: CudnnEngine, device: Gpu, pictures: cupy.ndarray) -> list[tuple[str, int, float]]:
    """The kernels that take longest in one run: name, calls, milliseconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run_and_wait(engine, device, pictures)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)[:TOP_KERNELS]
    kernels = [(event.key[:90], event.count, event.self_device_time_total / 1e3) for event in events]
    for name, count, ms in kernels:
        print(f"  {ms:7.3f} ms {count:>3} x {name}")
    return kernels


def run_and_wait(engine: CudnnEngine, device: Gpu, pictures: cupy.ndarray) -> None:
    engine.run({"input": pictures})
    device.synchronize()


def time_on_gpu_ms(device: Gpu, run: Callable[[], object]) -> float:
    """Milliseconds per run, over many runs in a row."""
    for _ in range(5):
        run()
    device.synchronize()
    started = time.perf_counter()
    for _ in range(RUNS):
        run()
    device.synchronize()
    return 1e3 * (time.perf_counter() - started) / RUNS


def timed_s(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def attempt(run: Callable[[], Any]) -> Any:
    """The result, or a description of the error, which is also printed."""
    try:
        return run()
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
