"""Which layers stay in FP32 to keep the loss of AP within a limit. The loss of each layer is made up here."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rcnn_export.errors import ExportError
from rcnn_export.repository import keep_float
from rcnn_export.repository.keep_float import Quantization, reach_goal
from rcnn_export.repository.sensitivity import LayerCost

COSTS = {"stem": 0.1, "a": 0.9, "b": 0.5, "c": 0.2, "d": 0.05, "head": 0.3}  # in points of AP


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces quantisation and measurement by COSTS; lists, for each measurement, how many layers were in FP32."""
    measured: list[int] = []

    def aps(int8: Sequence[str], *_: object) -> dict[str, float]:
        measured.append(len(COSTS) - len(int8))
        return {"boxes": 80.0, "masks": 70.0 - sum(COSTS[layer] for layer in int8)}

    def rank(graphs: object, ranges: object, layers: Sequence[str], *_: object) -> list[LayerCost]:
        return [
            LayerCost("rpn", layer, COSTS[layer]) for layer in sorted(layers, key=COSTS.__getitem__)[::-1]
        ]

    monkeypatch.setattr(
        keep_float, "quantize", lambda graph, ranges, kept: [each for each in COSTS if each not in kept]
    )
    monkeypatch.setattr(keep_float, "load_graphs", lambda repository, name, graphs: graphs["rpn"])
    monkeypatch.setattr(keep_float, "measure_aps", aps)
    monkeypatch.setattr(keep_float, "rank_layers", rank)
    return measured


def reach(
    most_loss: float, kept: tuple[str, ...] = (), lines: list[str] | None = None
) -> tuple[set[str], Any]:
    graphs: Any = {"rpn": []}
    trial = Quantization(Path(), "digits", graphs, {"rpn": {}}, list(COSTS), kept)
    annotated: Any = SimpleNamespace(samples=range(200))
    report = (lines if lines is not None else []).append
    return reach_goal(trial, most_loss, [], annotated, report)


def test_nothing_stays_where_int8_loses_little_enough(made_up: list[int]) -> None:
    kept, about = reach(3.0)
    assert kept == set() and made_up == [6, 0]
    assert about["pictures"] == 200 and about["fp32"] == {"boxes": 80.0, "masks": 70.0}
    assert about["int8"]["masks"] == pytest.approx(70 - 2.05)


@pytest.mark.parametrize(
    ("most_loss", "expected", "tried"),
    [
        (1.2, ["a"], [6, 0, 1]),
        (0.7, ["a", "b"], [6, 0, 1, 2]),
        (0.4, ["a", "b", "head"], [6, 0, 1, 2, 4, 3]),
        (0.1, ["a", "b", "head", "c", "stem"], [6, 0, 1, 2, 4, 5]),
    ],
)
def test_the_costliest_stay_and_no_more_than_needed(
    most_loss: float, expected: list[str], tried: list[int], made_up: list[int]
) -> None:
    lines: list[str] = []
    kept, about = reach(most_loss, lines=lines)
    assert kept == set(expected) and made_up == tried
    assert about["int8"]["masks"] == pytest.approx(
        70 - sum(COSTS[layer] for layer in COSTS if layer not in expected)
    )
    assert lines[-1] == f"Staying in FP32: {', '.join(expected)}"
    assert "INT8 with 0 of 6 layers in FP32: AP 80.00 of boxes, 67.95 of masks; 2.05 points lost" in lines


def test_layers_that_were_named_stay_too(made_up: list[int]) -> None:
    kept, _ = reach(0.7, kept=("d", "b"))
    assert kept == {"a", "b", "d"} and made_up == [6, 2, 3]


def test_a_goal_that_no_int8_reaches_is_refused() -> None:
    with pytest.raises(
        ExportError, match=r"INT8 loses more than 0\.01 points of AP even with a single layer in"
    ):
        reach(0.01)


def test_a_goal_that_would_hold_for_any_answer_is_refused() -> None:
    with pytest.raises(
        ExportError,
        match=r"has AP 80\.00 of boxes, 70\.00 of masks, which is no more than --most-ap-loss 70: give --annotations",
    ):
        reach(70)
