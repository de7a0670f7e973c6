"""How the plan of a convolution is chosen; cuDNN and the GPU are replaced by fakes."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from rcnn_backend.contract.manifest import write_manifest
from rcnn_backend.devices import Gpu
from rcnn_backend.engines.convolution import Convolution, convolve
from rcnn_backend.engines.convolution_int8 import convolve_int8, describe_int8
from rcnn_backend.errors import RepositoryError
from torch import Tensor

LAYER = "rcnn_backend.engines"
MODULES = ("convolution_plans", "cudnn_graphs")
TENSORS = torch.rand(2, 4, 6, 6), torch.rand(4, 4, 3, 3), torch.rand(4), None
GEOMETRY = (1, 1), (1, 1), (1, 1), 1
CALL = Convolution.of(*TENSORS, *GEOMETRY, True)
OWN_PLANS: list[tuple[str, Any]] = []  # those of our own INT8 kernel


class GraphOfPlans:
    """Replaces CudnnGraph: plans by name, with the milliseconds that each takes, or None for one that cannot run.

    Convolutions with a residual have none, except in INT8.
    """

    times_ms: dict[str, float | None] = {}  # noqa: RUF012
    built: list[str] = []  # noqa: RUF012

    def __init__(self, convolution: Convolution, _handle: object) -> None:
        if not self.times_ms or (convolution.has_residual and convolution.dtype != torch.int8):
            raise ValueError("no engine")
        self.convolution, self.plans = convolution, {name: index for index, name in enumerate(self.times_ms)}

    def build(self, index: int) -> int:
        name = list(self.plans)[index]
        self.built.append(name)
        if self.times_ms[name] is None:
            raise ValueError("not supported")
        return 0

    def run(self, index: int, _workspace: int, *tensors: Tensor) -> Tensor:
        geometry, relu = self.convolution.geometry, self.convolution.relu
        if self.convolution.dtype == torch.int8:
            return convolve_int8(*tensors, *geometry, relu, self.convolution.result_dtype)
        return convolve(*tensors, *geometry, relu)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The module with ConvolutionPlans, changed so that it works on the CPU."""
    frontend = ModuleType("cudnn")
    notes = "TENSOR_CORE", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT", "WINOGRAD"
    frontend.numerical_note = SimpleNamespace(**dict.fromkeys(notes, 0))  # type: ignore[attr-defined]
    frontend.data_type = SimpleNamespace(HALF=1, FLOAT=2, INT8=3)  # type: ignore[attr-defined]
    frontend.behavior_note = SimpleNamespace(RUNTIME_COMPILATION=4)  # type: ignore[attr-defined]
    frontend.create_handle = lambda: 7  # type: ignore[attr-defined]
    frontend.set_stream = lambda handle, stream: None  # type: ignore[attr-defined]
    frontend.backend_version = lambda: 91900  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cudnn", frontend)
    kernels = ModuleType("convolution_int8_gpu")
    kernels.int8_candidates = lambda *_: iter(OWN_PLANS)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"{LAYER}.convolution_int8_gpu", kernels)
    monkeypatch.setattr(torch.library, "impl", lambda *_: None)  # registers nothing for CUDA beyond the test
    for name in MODULES:
        monkeypatch.delitem(sys.modules, f"{LAYER}.{name}", raising=False)
    module = importlib.import_module(f"{LAYER}.convolution_plans")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(module, "CudnnGraph", GraphOfPlans)
    monkeypatch.setattr(GraphOfPlans, "times_ms", {})
    OWN_PLANS.clear()
    monkeypatch.setattr(GraphOfPlans, "built", [])

    def time_ms(plan: Any, _tensors: object) -> float:
        index = plan.args[0] if hasattr(plan, "args") else None
        return 5.0 if index is None else list(GraphOfPlans.times_ms.values())[index]

    monkeypatch.setattr(module, "_time_ms", time_ms)
    yield module
    for name in MODULES:
        sys.modules.pop(f"{LAYER}.{name}", None)


def run(plans: Any, made: Any = None, call: Convolution = CALL) -> Any:
    made = made or plans.ConvolutionPlans(torch.device("cpu"))
    found = made.run(call, *TENSORS)
    torch.testing.assert_close(found, convolve(*TENSORS, *GEOMETRY, True))
    return made


def test_the_fastest_plan_is_taken_and_known_by_its_name(plans: Any) -> None:
    GraphOfPlans.times_ms = {"slow": 9.0, "broken": None, "fast": 1.0, "medium": 2.0}
    made = run(plans)
    assert made.choices.get(CALL) == "fast"
    # The chosen plan is built again, in its own graph.
    assert GraphOfPlans.built == ["slow", "broken", "fast", "medium", "fast"]
    run(plans, made)  # no plan is built again
    assert len(GraphOfPlans.built) == 5


def test_a_new_process_builds_only_the_plan_that_was_chosen(plans: Any) -> None:
    GraphOfPlans.times_ms = {"slow": 9.0, "fast": 1.0}
    run(plans).choices.save()
    GraphOfPlans.built.clear()
    GraphOfPlans.times_ms = {"new": 0.5, "fast": 1.0, "slow": 9.0}  # the order does not matter
    run(plans)
    assert GraphOfPlans.built == ["fast"]


def test_a_chosen_plan_that_is_gone_is_chosen_anew(plans: Any) -> None:
    GraphOfPlans.times_ms = {"fast": 1.0}
    run(plans).choices.save()
    GraphOfPlans.times_ms = {"fast": None, "slow": 2.0}
    assert run(plans).choices.get(CALL) == "slow"


def test_torchs_operators_run_where_they_are_faster_or_alone(plans: Any) -> None:
    assert run(plans).choices.get(CALL).startswith("torch")
    GraphOfPlans.times_ms = {"slow": 9.0}
    assert run(plans).choices.get(CALL).startswith("torch")


@pytest.mark.parametrize("relu", [False, True])
def test_torch_may_add_the_residual_after_a_plan(
    plans: Any, monkeypatch: pytest.MonkeyPatch, relu: bool
) -> None:
    GraphOfPlans.times_ms = {"slow": 9.0, "fast": 1.0}
    times_ms = iter(
        [4.0, 3.0, 2.0, 1.0][not relu :]
    )  # torch's operators first, of which there are two with ReLU
    monkeypatch.setattr(plans, "_time_ms", lambda *_: next(times_ms))
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", lambda *_: None)
    tensors = [each.half() for each in (*TENSORS[:3], torch.rand(2, 4, 6, 6) - 1)]
    call = Convolution.of(*tensors, *GEOMETRY, relu)
    made = plans.ConvolutionPlans(torch.device("cpu"))
    found = made.run(call, *tensors)
    assert made.choices.get(call) == "fast + residual"
    torch.testing.assert_close(found, convolve(*tensors, *GEOMETRY, relu))


def test_only_the_first_plans_that_run_are_timed(plans: Any) -> None:
    most = plans.MAX_TIMED - 1  # one more is torch's own
    GraphOfPlans.times_ms = {"broken": None} | {
        f"plan {index}": 4.0 - index / 10 for index in range(most + 5)
    }
    assert run(plans).choices.get(CALL) == f"plan {most - 1}"
    assert GraphOfPlans.built == ["broken", *(f"plan {index}" for index in range(most)), f"plan {most - 1}"]


def test_a_capture_takes_only_plans_that_ran(plans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plans.ConvolutionPlans(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="must run once before it is captured"):
        run(plans, made)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    run(plans, made)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    run(plans, made)


@pytest.fixture
def int8_call() -> tuple[Convolution, tuple[Tensor, ...]]:
    x, weight = (torch.randint(-9, 9, shape).to(torch.int8) for shape in ((2, 4, 6, 6), (4, 4, 3, 3)))
    tensors = x, weight, torch.rand(4), x, torch.rand(4), torch.rand(4)
    return describe_int8(*tensors[:4], *GEOMETRY, True, torch.float16), tensors


def test_torchs_operators_run_int8_only_where_there_is_no_plan(plans: Any, int8_call: Any) -> None:
    call, tensors = int8_call
    made = plans.ConvolutionPlans(torch.device("cpu"))
    found = made.run(call, *tensors)
    torch.testing.assert_close(found, convolve_int8(*tensors, *GEOMETRY, True, torch.float16))
    assert made.choices.get(call) is None
    GraphOfPlans.times_ms = {"slow": 9.0}
    made = plans.ConvolutionPlans(torch.device("cpu"))
    torch.testing.assert_close(made.run(call, *tensors), found)
    assert made.choices.get(call) == "slow"


@pytest.mark.parametrize(
    ("own_ms", "chosen", "built"),
    [
        (0.09, "rcnn", []),
        (0.5, "fast", ["medium", "fast", "fast"]),
        (0.2, "rcnn", ["medium", "fast"]),
    ],
)
def test_cudnn_compiles_int8_plans_only_for_large_convolutions(
    plans: Any, int8_call: Any, monkeypatch: pytest.MonkeyPatch, own_ms: float, chosen: str, built: list[str]
) -> None:
    call, tensors = int8_call

    def own(*tensors: Tensor) -> Tensor:
        return convolve_int8(*tensors, *GEOMETRY, True, torch.float16)

    OWN_PLANS.append(("rcnn", lambda: own))
    GraphOfPlans.times_ms = {"medium": 0.4, "fast": 0.3, "not tried": 0.1}
    monkeypatch.setattr(plans, "MAX_COMPILED", 2)
    time_ms = plans._time_ms
    monkeypatch.setattr(
        plans, "_time_ms", lambda plan, given: own_ms if plan is own else time_ms(plan, given)
    )
    made = plans.ConvolutionPlans(torch.device("cpu"))
    made.run(call, *tensors)
    assert made.choices.get(call) == chosen
    assert GraphOfPlans.built == built


def test_plans_unused_for_longest_are_forgotten_but_not_those_of_graphs(
    plans: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "MAX_PLANS", 2)
    GraphOfPlans.times_ms = {"fast": 1.0}
    made = run(plans)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    run(plans, made)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for batch in (3, 4, 5):
        run(plans, made, CALL._replace(x=(batch, 4, 6, 6)))
    built = len(GraphOfPlans.built)
    run(plans, made)
    run(plans, made, CALL._replace(x=(5, 4, 6, 6)))
    assert len(GraphOfPlans.built) == built
    run(plans, made, CALL._replace(x=(3, 4, 6, 6)))
    assert len(GraphOfPlans.built) == built + 1


def test_a_host_without_the_frontend_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rcnn_backend.engines.cudnn import CudnnEngine

    monkeypatch.setitem(sys.modules, "cudnn", None)  # as if it were not installed
    for name in MODULES:
        monkeypatch.delitem(sys.modules, f"{LAYER}.{name}", raising=False)
    write_manifest(tmp_path, {"inputs": [], "outputs": [], "versions": {"torch": "2.11.0"}})
    gpu = Gpu.__new__(Gpu)  # without CuPy
    with pytest.raises(
        RepositoryError, match=r"nvidia-cudnn-frontend cannot be loaded.*rcnn-backend\[cudnn\]"
    ):
        CudnnEngine(tmp_path / "model.cudnn.pt2", gpu)
