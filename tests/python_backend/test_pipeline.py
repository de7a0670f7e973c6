"""Which batches the fused pipeline runs before the first request comes."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from rcnn_backend import pipeline
from rcnn_backend.devices import Cpu
from rcnn_backend.pipeline import Pipeline


@pytest.mark.parametrize(("is_capturable", "batches"), [(True, [3, 3, 2, 2, 1, 1]), (False, [1, 1])])
def test_every_batch_is_warmed_where_it_becomes_a_graph(
    monkeypatch: pytest.MonkeyPatch, is_capturable: bool, batches: list[int]
) -> None:
    """Elsewhere a large batch would cost time, or lie outside a plan's profiles."""
    device, ran = Cpu(), []
    device.is_gpu = True
    for step in ("preprocessing", "proposing", "detecting"):
        monkeypatch.setattr(pipeline, step, MagicMock())
    monkeypatch.setattr(Pipeline, "run", lambda _self, pixels, _parameters: ran.append(len(pixels)))
    rest = dict.fromkeys(Pipeline.__dataclass_fields__)
    engine = SimpleNamespace(is_capturable=is_capturable)
    sizes = SimpleNamespace(min_size=2, max_size=3)
    Pipeline(
        **rest
        | {"device": device, "engines": {"rpn": engine, "header": engine}, "preprocess_parameters": sizes}
    ).warm_up(3)
    assert ran == batches
