"""A small version of each benchmark: they run; how fast is not judged here."""

import argparse
import importlib
from pathlib import Path
from types import ModuleType

import pytest
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.server.local_server import running_server
from rcnn_export.detector.load import Detector
from rcnn_export.digits.dataset import DigitsDataset
from rcnn_export.train.coco_eval import detect, score

pytestmark = pytest.mark.xdist_group("client")

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PICTURES = Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module(name)


def test_cpu_benchmark_measures_both_sides(
    digits: Detector, digits_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = next(PICTURES.glob("*.jpg")).read_bytes()
    benchmark = load("cpu", monkeypatch)
    eager_ms, served_ms = benchmark.measure(
        digits, digits_repository, "digits", picture, repeats=2, detections=3
    )
    assert eager_ms > 0
    assert served_ms > 0


def test_precision_benchmark_scores_the_pipeline_as_torchvision_is_scored(
    digits: Detector, digits_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DigitsDataset("held-out", 6)
    samples = [data[index] for index in range(6)]
    ours = load("precision", monkeypatch).run(Pipeline.load(digits_repository, "digits"), samples)
    theirs = detect(digits.model, enumerate(samples))
    assert (ours.images, ours.truth) == (theirs.images, theirs.truth)
    assert score([ours], data.class_names)["ap"] == pytest.approx(
        score([theirs], data.class_names)["ap"], abs=1e-4
    )


def test_stages_have_a_time_and_a_floor(
    digits: Detector, digits_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, gpu = load("stages", monkeypatch), load("gpu", monkeypatch)
    monkeypatch.setattr(stages, "RUNS", 1)
    pictures = gpu.make_pictures("160x120")[:1]
    encoded = [gpu.encode(picture) for picture in pictures]
    rows = stages.measure_stages(Pipeline.load(digits_repository, "digits"), digits, pictures, encoded)
    assert len(rows) == 6
    assert all(row.time_ms > 0 and row.floor_ms > 0 for row in rows)


def test_memory_under_load_is_watched(digits_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load("gpu_memory", monkeypatch)
    with running_server(digits_repository, ["digits_fused"]) as server:
        answers = benchmark.run_load(server, argparse.Namespace(name="digits_fused", seconds=2, clients=2))
    assert set(answers) == {"boxes"}
