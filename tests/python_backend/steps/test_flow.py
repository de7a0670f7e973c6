"""How far the first step runs ahead of the detections, with a stand-in for Triton's metrics."""

import importlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


class Gauge:
    """As Triton's: one for all who ask for the same name and labels."""

    def __init__(self) -> None:
        self.number = 0

    def increment(self, by: float) -> None:
        self.number += by

    def set(self, number: float) -> None:
        self.number = number

    def value(self) -> float:
        return self.number


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> dict[str, Gauge]:
    """The gauges by name and detector."""
    kept: dict[str, Gauge] = {}

    def family(name: str, **_: Any) -> Any:
        return SimpleNamespace(Metric=lambda labels: kept.setdefault(f"{name} {labels['model']}", Gauge()))

    family.GAUGE = "gauge"  # type: ignore[attr-defined]
    pb_utils = ModuleType("triton_python_backend_utils")
    pb_utils.__dict__["MetricFamily"] = family
    monkeypatch.setitem(sys.modules, pb_utils.__name__, pb_utils)
    monkeypatch.delitem(sys.modules, "rcnn_backend.steps.flow", raising=False)
    return kept


@pytest.fixture
def open_flow(gauges: dict[str, Gauge]) -> Callable[..., Any]:
    """Opens the flow that a model of the repository is in."""
    module = importlib.import_module("rcnn_backend.steps.flow")

    def opened(model: str, *, is_gpu: bool = False, **config: Any) -> Any:
        args = {"model_name": model, "model_repository": str(REPOSITORY / model)}
        return module.open_flow(args, {"max_batch_size": 8, **config}, is_gpu=is_gpu)

    return opened


def returns(wait: Callable[[], None], within_s: float) -> bool:
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(within_s)
    return not thread.is_alive()


def test_the_first_step_waits_until_the_detections_have_received_enough(
    open_flow: Callable[..., Any],
) -> None:
    first, last = open_flow("faster_rcnn_preprocess"), open_flow("faster_rcnn_detections")
    first.send(3)
    assert returns(first.wait, 5)
    first.send(2)
    with last.executing():
        assert not returns(first.wait, 0.4)
    last.receive(2)
    assert returns(first.wait, 5)


def test_images_that_never_arrive_are_forgotten_when_no_step_computes(
    open_flow: Callable[..., Any], gauges: dict[str, Gauge]
) -> None:
    first, engine = open_flow("faster_rcnn_preprocess"), open_flow("faster_rcnn_rpn")
    first.send(8)
    with engine.executing():
        assert not returns(first.wait, 0.4)
    began = time.monotonic()
    first.wait()
    assert time.monotonic() - began < 5
    assert gauges["rcnn_images_in_flight faster_rcnn"].value() == 0


def test_images_that_arrive_after_they_were_forgotten_make_no_room(
    open_flow: Callable[..., Any], gauges: dict[str, Gauge]
) -> None:
    first, last = open_flow("faster_rcnn_preprocess"), open_flow("faster_rcnn_detections")
    last.receive(8)
    first.wait()
    assert gauges["rcnn_images_in_flight faster_rcnn"].value() == 0


@pytest.mark.parametrize(
    ("is_gpu", "groups", "limit"),
    [
        (False, [], 4),
        (False, [{"count": 2}], 8),
        (True, [{"count": 1, "gpus": [0]}], 32),
        (True, [{"count": 2, "gpus": [0, 1]}], 128),
    ],
)
def test_the_limit_follows_the_instances(
    open_flow: Callable[..., Any], is_gpu: bool, groups: list[dict[str, Any]], limit: int
) -> None:
    first = open_flow("faster_rcnn_preprocess", is_gpu=is_gpu, instance_group=groups)
    first.send(limit - 1)
    assert returns(first.wait, 5)
    first.send(1)
    with first.executing():
        assert not returns(first.wait, 0.1)


@pytest.mark.parametrize("model", ["faster_rcnn_fused", "faster_rcnn", "other"])
def test_a_model_that_is_no_step_has_no_flow(open_flow: Callable[..., Any], model: str) -> None:
    assert open_flow(model) is None
