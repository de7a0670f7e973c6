"""A small version of each benchmark: they run; how fast is not judged here."""

import importlib.util
from pathlib import Path

import pytest
from rcnn_export.detector import Detector

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PICTURES = Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures"


@pytest.mark.xdist_group("digits")
def test_cpu_benchmark_measures_both_sides(digits: Detector, digits_repository: Path) -> None:
    spec = importlib.util.spec_from_file_location("cpu_benchmark", BENCHMARKS / "cpu.py")
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    picture = next(PICTURES.glob("*.jpg")).read_bytes()
    eager_ms, served_ms = benchmark.measure(digits, digits_repository, "digits", picture, repeats=2)
    assert eager_ms > 0
    assert served_ms > 0
