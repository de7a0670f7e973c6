"""How a step answers the requests of one execution, with stand-ins for Triton's objects."""

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from rcnn_backend.contract.chain_types import FP32, Chain, ChainStep, Tensor
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.steps.lost_tensors import take_samples

X, Y = Tensor("x", FP32, (1,)), Tensor("y", FP32, (1,))
PAIR = Chain("pair", (ChainStep("first", (), (X,)), ChainStep("doubling", (X,), (Y,))))


class Error(Exception):
    UNAVAILABLE, INVALID_ARG, INTERNAL = "unavailable", "invalid argument", "internal"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def respond(tensors: Any = (), error: Error | None = None) -> Any:
    """Replaces InferenceResponse: returns the outputs, or the error's code and message."""
    return (error.code, str(error)) if error else {name: array.tolist() for name, array in tensors}


def tensor(name: str, array: np.ndarray) -> Any:
    return SimpleNamespace(name=lambda: name, is_cpu=lambda: True, as_numpy=lambda: array)


def ask(*values: float, **parameters: Any) -> Any:
    """A request with a tensor ``x`` [B, 1]."""
    tensors = [tensor("x", np.array(values, np.float32)[:, None])]
    return SimpleNamespace(
        inputs=lambda: tensors,
        parameters=lambda: json.dumps(parameters),
        requested_output_names=lambda: ["y"],
    )


@pytest.fixture
def make_step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a step on the CPU."""
    pb_utils = ModuleType("triton_python_backend_utils")
    pb_utils.__dict__.update(
        TritonError=Error,
        InferenceResponse=respond,
        Tensor=lambda name, array: (name, array),
        MetricFamily=MagicMock(),
    )
    monkeypatch.setitem(sys.modules, pb_utils.__name__, pb_utils)
    for name in ("step", "metrics", "responses"):
        monkeypatch.delitem(sys.modules, f"rcnn_backend.steps.{name}", raising=False)
    module = importlib.import_module("rcnn_backend.steps.step")
    args = {"model_config": '{"output": []}', "model_name": "doubling", "model_instance_kind": "CPU"}
    return lambda *declared: module.Step(args, *declared)


@pytest.fixture
def step(make_step: Any) -> Any:
    """A step that is not declared in any chain."""
    return make_step()


class Model:
    """Doubles ``x``; a batch with a negative number fails."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def together(self, tensors: dict[str, np.ndarray], options: list[Any]) -> dict[str, np.ndarray]:
        assert len(options) == len(tensors["x"])
        self.batches.append(tensors["x"].ravel().tolist())
        if (tensors["x"] < 0).any():
            raise ValueError(f"negative among {len(options)}")
        return {"y": tensors["x"] * 2}

    def each(self, requests: list[Any]) -> list[Any]:
        joined = {"x": np.concatenate([request.tensors["x"] for request in requests])}
        self.together(joined, [request.options for request in requests for _ in request.tensors["x"]])
        return [
            InvalidInputError("zero") if 0 in request.tensors["x"] else {"y": request.tensors["x"] * 2}
            for request in requests
        ]


@pytest.mark.parametrize("way", ["together", "each"])
def test_requests_are_computed_at_once(step: Any, way: str) -> None:
    model = Model()
    responses = getattr(step, f"answer_{way}")([ask(1, 2), ask(3)], getattr(model, way))
    assert responses == [{"y": [[2], [4]]}, {"y": [[6]]}]
    assert model.batches == [[1, 2, 3]]


@pytest.mark.parametrize("way", ["together", "each"])
def test_a_request_that_cannot_be_computed_fails_alone(step: Any, way: str) -> None:
    model = Model()
    responses = getattr(step, f"answer_{way}")([ask(1, 2), ask(-1), ask(3)], getattr(model, way))
    assert responses == [
        {"y": [[2], [4]]},
        ("internal", "ValueError: negative among 1"),
        {"y": [[6]]},
    ]
    assert model.batches == [[1, 2, -1, 3], [1, 2], [-1], [3]]


@pytest.mark.parametrize("way", ["together", "each"])
def test_nothing_is_computed_again_on_a_device_that_is_unusable(step: Any, way: str) -> None:
    model = Model()
    step.device.is_usable = lambda: False
    step._end = MagicMock(is_near=False)
    responses = getattr(step, f"answer_{way}")([ask(1, 2), ask(-1), ask(3)], getattr(model, way))
    assert responses == [("internal", "ValueError: negative among 4")] * 3
    assert model.batches == [[1, 2, -1, 3]]
    step._end.begin.assert_called()
    step._end.is_near = True
    ((code, message),) = getattr(step, f"answer_{way}")([ask(1)], getattr(model, way))
    assert code == "unavailable" and "about to end" in message
    assert len(model.batches) == 1


def test_a_device_that_cannot_be_left_fails_the_requests_and_ends_the_process(step: Any) -> None:
    @contextlib.contextmanager
    def active() -> Iterator[None]:
        yield
        raise RuntimeError("an illegal memory access was encountered")

    step.device.active, step.device.is_usable = active, lambda: False
    step._end = MagicMock(is_near=False)
    responses = step.answer_together([ask(1), ask(2)], Model().together)
    assert responses == [("internal", "RuntimeError: an illegal memory access was encountered")] * 2
    step._end.begin.assert_called()


def test_a_device_that_is_still_usable_ends_nothing(step: Any) -> None:
    step._end = MagicMock(is_near=False)
    step.answer_together([ask(-1)], Model().together)
    step.answer_each([ask(0)], Model().each)
    step._end.begin.assert_not_called()


@pytest.mark.parametrize("way", ["together", "each"])
def test_parameters_that_are_refused_keep_a_request_out_of_the_batch(step: Any, way: str) -> None:
    def read_options(parameters: dict[str, Any]) -> None:
        if parameters:
            raise InvalidInputError(f"unknown: {', '.join(parameters)}")

    model = Model()
    requests = [ask(1), ask(2, colour=3), ask(3)]
    responses = getattr(step, f"answer_{way}")(requests, getattr(model, way), read_options=read_options)
    assert responses == [{"y": [[2]]}, ("invalid argument", "unknown: colour"), {"y": [[6]]}]
    assert model.batches == [[1, 3]]
    model.batches.clear()
    (refused,) = getattr(step, f"answer_{way}")([requests[1]], getattr(model, way), read_options=read_options)
    assert refused == responses[1]
    assert not model.batches


def test_each_request_can_have_its_own_error(step: Any) -> None:
    assert step.answer_each([ask(1), ask(0)], Model().each) == [{"y": [[2]]}, ("invalid argument", "zero")]


@pytest.mark.parametrize("way", ["together", "each"])
def test_outputs_that_cannot_be_sent_fail_their_own_request(step: Any, way: str) -> None:
    def compute(first: Any, *_options: Any) -> Any:
        return (
            {"y": "no array"}
            if way == "together"
            else [{"y": "no array"}, {"y": np.ones((1, 1))}][: len(first)]
        )

    responses = getattr(step, f"answer_{way}")([ask(1), ask(2)], compute)
    assert responses[0][0] == "internal"
    assert way == "together" or responses[1] == {"y": [[1]]}


def test_a_request_whose_tensor_was_lost_fails_alone(make_step: Any) -> None:
    requests = [ask(1), ask(2), ask(3)]
    for request, sent in zip(requests, (1, 5, 3), strict=True):
        samples = take_samples([np.array([[sent]], np.float32)])
        request.inputs().append(tensor("first_samples", samples))
    model = Model()
    first, lost, last = make_step(PAIR, "doubling").answer_together(requests, model.together)
    assert (first, last) == ({"y": [[2]]}, {"y": [[6]]})
    assert lost[0] == "unavailable" and "x got lost" in lost[1]
    assert model.batches == [[1, 2, 3]]
