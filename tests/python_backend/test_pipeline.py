"""The pipeline in one process: what it runs before the first request, and which requests get an error."""

import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from rcnn_backend import pipeline
from rcnn_backend.contract.parameters import PreprocessParameters
from rcnn_backend.devices import Cpu, Device
from rcnn_backend.engines.load import Engine, load_engine
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.detections import Detections
from rcnn_backend.pipeline import Pipeline

LARGE, SMALL = (64, 96), (32, 64)


def warm_up(
    monkeypatch: pytest.MonkeyPatch,
    is_capturable: bool,
    padded_sizes_hw: list[list[int]],
    refused: Sequence[tuple[int, int]] = (),
) -> list[tuple[int, ...]]:
    """B, H and W of the batches that ``warm_up(3)`` runs through the networks, without the ``refused`` sizes."""
    device, ran = Cpu(), []
    device.is_gpu = True

    def networks(_pipeline: Pipeline, network_input: np.ndarray, image_sizes: np.ndarray) -> None:
        batch, channels, height, width = network_input.shape
        assert (channels, network_input.dtype) == (3, np.float16)
        np.testing.assert_array_equal(image_sizes, [[height, width, height, width]] * batch)
        if (height, width) in refused:
            raise InvalidInputError(f"{height}x{width} lies outside every profile")
        ran.append((batch, height, width))

    for step in ("preprocessing", "proposing", "detecting"):
        monkeypatch.setattr(pipeline, step, MagicMock())
    monkeypatch.setattr(Pipeline, "_networks", networks)
    engine = SimpleNamespace(is_capturable=is_capturable)
    sizes = PreprocessParameters(60, 90, None, [0.5] * 3, [0.2] * 3, 32, 10**8, padded_sizes_hw)
    engines = {"rpn": engine, "header": engine}
    given = {"device": device, "engines": engines, "preprocess_parameters": sizes}
    rest = dict.fromkeys(Pipeline.__dataclass_fields__)
    Pipeline(**rest | given | {"input_dtype": np.dtype(np.float16)}).warm_up(3)
    return ran


class NarrowEngine:
    """An engine that refuses inputs outside its profile, as a plan does. With ``breaks`` it makes the device unusable."""

    is_capturable = False

    def __init__(self, version_dir: Path, device: Device) -> None:
        self._engine: Engine = load_engine(version_dir, device)
        self._device = device
        self.max_batch, self.max_width = 8, 10_000
        self.breaks = False
        self.batches: list[int] = []

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if "input" in inputs:
            batch, _, _, width = inputs["input"].shape
            self.batches.append(batch)
            if self.breaks:
                self._device.is_usable = lambda: False
                raise RuntimeError("illegal access")
            if batch > self.max_batch or width > self.max_width:
                raise ValueError(
                    f"{batch} images {width} wide: expected {self.max_batch} of {self.max_width}"
                )
        return self._engine.run(inputs)


@pytest.fixture
def narrow(digits_repository: Path) -> Pipeline:
    """A pipeline on a device that runs a batch at once."""
    device = Cpu()
    device.is_gpu = True
    return Pipeline.load(digits_repository, "digits", device, load_engine=NarrowEngine)


def requests_of(narrow: Pipeline, *sizes_hw: tuple[int, int]) -> list[Any]:
    """A request with one blank picture for each size."""
    return [([np.full((*size, 3), 99, np.uint8)], narrow.read_options({})) for size in sizes_hw]


@pytest.mark.xdist_group("server")
def test_a_request_that_an_engine_refuses_fails_alone(narrow: Pipeline) -> None:
    wide, square = (30, 50), (40, 40)
    padded_widths = [
        pipeline.preprocess(images, narrow.preprocess_parameters, np.float32)[0].shape[3]
        for images, _ in requests_of(narrow, square, wide)
    ]
    assert padded_widths[0] < padded_widths[1]
    narrow.engines["rpn"].max_width = padded_widths[0]
    square_results, wide_results = {0, 2}, {1, 3}
    results = narrow.detect_requests(requests_of(narrow, square, wide, square, wide))
    for number in square_results:
        assert isinstance(results[number], Detections) and results[number].boxes.shape[0] == 1
    for number in wide_results:
        assert f"1 images {padded_widths[1]} wide" in str(results[number])


@pytest.mark.xdist_group("server")
def test_a_batch_that_an_engine_refuses_runs_request_by_request(narrow: Pipeline) -> None:
    pictures = [[np.full((40, 40, 3), value, np.uint8)] * count for value, count in ((0, 1), (99, 1), (9, 3))]
    requests = [(images, narrow.read_options({})) for images in pictures]
    narrow.engines["rpn"].max_batch = 2
    first, second, three_images = narrow.detect_requests(requests)
    assert len(first.boxes) == len(second.boxes) == 1
    assert "3 images" in str(three_images)
    assert narrow.engines["rpn"].batches == [5, 1, 1, 3]
    narrow.engines["rpn"].max_batch = 8
    for found, expected in zip(narrow.detect_requests(requests)[:2], (first, second), strict=True):
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)


@pytest.mark.xdist_group("server")
def test_nothing_more_runs_on_a_device_that_broke(narrow: Pipeline) -> None:
    narrow.engines["rpn"].breaks = True
    results = narrow.detect_requests(requests_of(narrow, (40, 40), (30, 50), (40, 40), (50, 30)))
    assert [str(error) for error in results] == ["illegal access"] * 4
    assert narrow.engines["rpn"].batches == [2]


@pytest.mark.xdist_group("server")
def test_a_cpu_runs_image_by_image_and_answers_as_for_the_batch(
    digits_repository: Path, narrow: Pipeline
) -> None:
    on_cpu = Pipeline.load(digits_repository, "digits", load_engine=NarrowEngine)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (*size, 3), np.uint8) for size in ((40, 40), (30, 50), (50, 30))]
    found = on_cpu.detect(pictures, {"score_thresh": 0.0})
    expected = narrow.detect(pictures, {"score_thresh": 0.0})  # padded to the same size
    assert (on_cpu.engines["rpn"].batches, narrow.engines["rpn"].batches) == ([1, 1, 1], [3])
    assert expected.num_detections.all()
    for name, array in expected.answers.items():
        np.testing.assert_allclose(found.answers[name], array, atol=1e-3, err_msg=name)


@pytest.mark.xdist_group("server")
def test_a_cpu_prepares_an_image_while_it_computes_another(digits_repository: Path) -> None:
    both_run = threading.Barrier(2, timeout=30)

    class WaitingEngine(NarrowEngine):
        def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
            both_run.wait()
            return super().run(inputs)

    on_cpu = Pipeline.load(digits_repository, "digits", load_engine=WaitingEngine)
    assert len(on_cpu.detect([np.zeros((40, 40, 3), np.uint8)] * 4).boxes) == 4


@pytest.mark.parametrize(("is_capturable", "batches"), [(True, [3, 3, 2, 2, 1, 1]), (False, [1, 1])])
def test_every_batch_is_warmed_where_it_becomes_a_graph(
    monkeypatch: pytest.MonkeyPatch, is_capturable: bool, batches: list[int]
) -> None:
    """Otherwise a large batch would cost time, or be outside a plan's profiles."""
    assert warm_up(monkeypatch, is_capturable, []) == [(batch, *LARGE) for batch in batches]


@pytest.mark.parametrize(("is_capturable", "batches"), [(True, [3, 3, 2, 2, 1, 1]), (False, [1, 1])])
def test_every_padded_size_is_warmed_the_largest_first(
    monkeypatch: pytest.MonkeyPatch, is_capturable: bool, batches: list[int]
) -> None:
    """This includes a size to which only a batch of pictures with different shapes is padded."""
    ran = warm_up(monkeypatch, is_capturable, [list(SMALL), [96, 96], list(LARGE)])
    assert ran == [(batch, *size_hw) for size_hw in ((96, 96), LARGE, SMALL) for batch in batches]


def test_a_padded_size_outside_a_plan_hinders_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [list(SMALL), list(LARGE)]
    assert warm_up(monkeypatch, False, both, refused=[LARGE]) == [(1, *SMALL)] * 2
    with pytest.raises(InvalidInputError, match="64x96 lies outside"):
        warm_up(monkeypatch, False, both, refused=[LARGE, SMALL])


@pytest.mark.xdist_group("server")
def test_each_engine_takes_the_threads_of_its_config(digits_repository: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    shutil.copytree(digits_repository, repository)
    with (repository / "digits_rpn" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n')
    engines = Pipeline.load(repository, "digits").engines
    threads = {
        name: engine._network.get_property("INFERENCE_NUM_THREADS") for name, engine in engines.items()
    }
    assert threads == {"rpn": 1, "header": len(os.sched_getaffinity(0))}
