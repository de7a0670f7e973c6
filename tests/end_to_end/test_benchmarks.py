"""A small version of each benchmark: the tests check that they run, but not how fast."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.server.local_server import running_server
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.digits.dataset import DigitsDataset
from rcnn_export.train.coco_eval import detect, score
from torchvision.models.detection.roi_heads import paste_masks_in_image

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


@pytest.mark.long
def test_cpu_peers_all_detect(digits: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load("cpu_peers", monkeypatch)
    pictures = [np.asarray(Image.open(path)) for path in sorted(PICTURES.glob("*.jpg"))]
    rows = benchmark.measure(digits, (240, 320), pictures, tmp_path, repeats=1, bursts=1)
    served = [row for name, row in rows.items() if "served" in name]
    assert (len(rows), len(served)) == (9, 4)
    assert min(row.latency_ms for row in rows.values()) > 0
    assert min(min(row) for row in served) > 0
    assert benchmark.tabulate("digits", rows).row_count == 9


@pytest.mark.parametrize("engine", ["OnnxEngine", "OnnxRuntimeEngine"])
def test_precision_benchmark_scores_the_pipeline_as_torchvision_is_scored(
    engine: str, digits: Detector, digits_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DigitsDataset("held-out", 6)
    samples = [data[index] for index in range(6)]
    precision = load("precision", monkeypatch)
    pipeline = Pipeline.load(
        digits_repository,
        "digits",
        load_engine=lambda folder, _: getattr(precision, engine)(folder / "model.onnx"),
    )
    theirs = score([detect(digits.model, enumerate(samples))], data.class_names)
    assert precision.score_pipeline(pipeline, samples, digits)["ap"] == pytest.approx(theirs["ap"], abs=1e-4)


def test_photographs_are_cut_into_tiles_with_the_trees_that_are_mostly_inside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = [
        (10, 20, 60, 50),
        (390, 500, 430, 520),
        (700, 700, 790, 760),
    ]  # the second is mostly in the last tile
    objects = "".join(
        "<bndbox>"
        + "".join(f"<{side}>{px}</{side}>" for side, px in zip(sides, box, strict=True))
        + "</bndbox>"
        for box in boxes
    )
    (tmp_path / "photo.xml").write_text(f"<annotation>{objects}</annotation>")
    Image.new("RGB", (850, 800)).save(tmp_path / "photo.png")
    load("photographs", monkeypatch).cut(tmp_path, tmp_path / "out")
    train, held_out = (
        json.loads((tmp_path / "out" / f"{part}.json").read_text()) for part in ("train", "held_out")
    )
    assert [each["bbox"] for each in train["annotations"]] == [[10, 20, 50, 30]]
    assert [each["bbox"] for each in held_out["annotations"]] == [[0, 100, 30, 20], [300, 300, 90, 60]]
    assert len(train["images"]) == 3 and held_out["images"][0]["file_name"] == "photo_003.png"
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 4


def test_stages_have_a_time_and_a_floor(
    digits: Detector, digits_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, gpu = load("stages", monkeypatch), load("gpu", monkeypatch)
    monkeypatch.setattr(stages, "RUNS", 1)
    pictures = gpu.make_pictures("160x120")[:1]
    encoded = [gpu.encode(picture) for picture in pictures]
    pipeline = Pipeline.load(digits_repository, "digits")
    rows = stages.measure_stages(pipeline, digits, pictures, encoded, detections=2)
    assert len(rows) == 6
    assert all(row.time_ms > 0 and row.floor_ms > 0 for row in rows)


def test_measured_pictures_have_the_requested_number_of_detections(
    digits: Detector, digits_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark, gpu = load("gpu_in_process", monkeypatch), load("gpu", monkeypatch)
    monkeypatch.setattr(benchmark, "TURNS", 1)
    pipeline, pictures = Pipeline.load(digits_repository, "digits"), gpu.make_pictures("330x250")[:1]
    rows = benchmark.measure_in_process(digits, pipeline, pictures, [1], [2], compiles=False)
    assert [row[:4] for row in rows] == [
        ("digits_detector", 2, contender, 1)
        for contender in ("torchvision FP32", "torchvision AMP", "Pipeline")
    ]
    assert digits.model.roi_heads.detections_per_img == 100
    with pytest.raises(ValueError, match="peer found 90, 7 detections, expected 90 in each picture"):
        benchmark.check_counts("peer", [90, 7], 90)


def test_torchvision_leaves_its_masks_in_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_detector("rcnn_export.digits.detector:digits_mask_detector").model
    model.roi_heads.detections_per_img = 2
    picture = torch.rand(3, 60, 80)
    with torch.inference_mode():
        with load("unpasted", monkeypatch).unpasted(model):
            (ours,) = model([picture])
        (pasted,) = model([picture])
    assert ours["masks"].shape == (2, 28, 28)
    assert pasted["masks"].shape == (2, 1, 60, 80)
    torch.testing.assert_close(ours["boxes"], pasted["boxes"])
    torch.testing.assert_close(
        paste_masks_in_image(ours["masks"][:, None], ours["boxes"], (60, 80)), pasted["masks"]
    )


def test_detectors_are_compared_with_the_first_and_with_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    report = load("gpu_report", monkeypatch)
    in_process = [
        report.InProcess("faster", 10, "torchvision AMP", 8, 80.0),
        report.InProcess("faster", 10, "Pipeline", 8, 16.0),
        report.InProcess("mask", 10, "Pipeline", 8, 18.0),
    ]
    served = [
        report.Served("mask", 10, "peer", 16, 100.0, 0.0, 0.0),
        report.Served("mask", 10, "fused", 16, 400.0, 0.0, 0.0),
    ]
    table = report.comparison_table(in_process, served)
    assert [[*cells][4:] for cells in zip(*(column.cells for column in table.columns), strict=True)] == [
        ["2.00", "", "10.00", "5.0"],
        ["2.25", "+12%", "", ""],
        ["2.50", "", "10.00", "4.0"],
    ]


def test_two_gpus_are_compared_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    report, watch = load("gpus_report", monkeypatch), load("watch_host", monkeypatch)
    usage = watch.Usage({"client": 1.5, "tritonserver": 2.0, "steps": 3.25}, 7.0, {"0": 90.0, "1": 91.6})
    rows = [
        report.Row("0", 32, 400.0, 78.0, 99.0, 30.0, 40.0, 7.9, usage._replace(gpus={"0": 95.0})),
        report.Row("0", 64, 500.0, 127.0, 150.0, 80.0, 41.0, 8.0, usage),
        report.Row("0,1", 64, 950.0, 66.0, 80.0, 20.0, 42.0, 7.5, usage),
        report.Row("0,1", 16, 300.0, 50.0, 60.0, 5.0, 40.0, 4.0, usage),
    ]
    table = report.gpus_table(rows, "detector")
    found = [list(cells) for cells in zip(*(column.cells for column in table.columns), strict=True)]
    assert found[2][:6] == ["0,1", "64", "950", "1.90", "66.0 / 80.0", "7.5"]
    # The rest, 5.4 ms, is 1000 x 64 / 950 - 20.0 - 42.0.
    assert found[2][6:] == ["20.0", "42.0", "5.4", "1.5", "2.0", "3.2", "7.0", "90%, 92%"]
    assert [cells[3] for cells in found] == ["1.00", "1.00", "1.90", ""]
    lines = report.shares(rows, 240e3, load("decode_share", monkeypatch).BatchTime(8, 1.2, 14.0), 32)
    assert "950 a second are 1.82 Gbit/s" in lines[0] and "of 32" in lines[0]
    assert "decoding 1.2 (9%): 571 img/s" in lines[1]
    assert lines[2:] == ["64 clients: 1.90 times one GPU's rate; the goal of 1.85 is reached."]


def test_the_cores_of_a_host_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = load("watch_host", monkeypatch)
    monkeypatch.setattr(watch, "GPU_QUERY", ["echo", "0, 97\n1, [N/A]"])
    busy, idle = [sys.executable, "-c", "while True: pass"], ["sleep", "60"]
    with subprocess.Popen(busy) as triton, subprocess.Popen(idle) as step:
        try:
            began = time.monotonic()
            with watch.HostWatch(triton.pid, [step.pid]) as host:
                time.sleep(2)
            used = host.usage(began, time.monotonic())
        finally:
            triton.kill()
            step.kill()
    assert used.cores[watch.CLIENT] == 0 and used.cores[watch.STEPS] < 0.05
    assert 0.1 < used.cores[watch.TRITON] < 1.2 and used.host_cores > 0.1
    assert used.gpus == {"0": 97.0}


def test_a_batch_is_timed_in_process(digits_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = load("decode_share", monkeypatch)
    monkeypatch.setattr(share, "RUNS", 1)
    timed = share.time_batch(digits_repository, "digits", [next(PICTURES.glob("*.jpg")).read_bytes()])
    assert timed.batch == 8 and 0 < timed.decode_ms < timed.whole_ms


def test_a_served_load_is_measured_with_the_cores_that_it_uses(
    digits_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus, serve = load("gpus", monkeypatch), load("rcnn_serve", monkeypatch)
    analyzer, data = gpus.prepare_load(tmp_path, [path.read_bytes() for path in PICTURES.glob("*.jpg")])
    options = argparse.Namespace(seconds=2.0, repeats=1)
    with serve.rcnn_serve(digits_repository, "--models", "digits", "--fused", "on") as serving:
        row = gpus.measure(serving, "digits", analyzer, data, "0", 2, options)
    assert row.images_per_s > 0
    assert row.images_per_batch >= 1
    assert row.usage.cores["steps"] > 0


def test_the_command_runs_with_its_server_and_its_steps(
    digits_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = load("rcnn_serve", monkeypatch)
    with command.rcnn_serve(digits_repository, "--models", "digits", "--mps", "off") as serving:
        assert [(stub.model, stub.gpu) for stub in serving.stubs.values()] == [("digits", None)]
        assert set(serving.urls) == {"http", "grpc", "metrics"}
        assert Path(f"/proc/{serving.triton_pid}/exe").resolve().name == "tritonserver"
    assert serving.process.returncode == 0
    with (
        pytest.raises(RuntimeError, match=r"rcnn-serve does not start: rcnn-serve: .*no model"),
        command.rcnn_serve(digits_repository, "--models", "missing"),
    ):
        pass


@pytest.mark.long
@pytest.mark.timeout(600)
def test_both_detectors_are_exported_once_and_measured_in_every_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = load("gpu", monkeypatch)
    monkeypatch.setattr(load("gpu_in_process", monkeypatch), "TURNS", 1)
    monkeypatch.setattr(load("stages", monkeypatch), "RUNS", 1)
    monkeypatch.setattr(gpu, "STAGES_BATCH", 2)
    detectors = ["digits_detector", "digits_mask_detector"]
    models = [f"rcnn_export.digits.detector:{name}" for name in detectors]
    command = ["gpu.py", "--models", *models, "--engine", "onnx", "--precision", "fp32", "--size", "160x120"]
    command += ["--detections", "1", "5", "--batches", "2", "--no-compile", "--serve", "peer", "fused"]
    command += ["--clients", "2", "--seconds", "6", "--out", str(tmp_path)]
    command += ["--repository", str(tmp_path / "repository")]
    monkeypatch.setattr(sys, "argv", [*command, "--parts"])
    assert gpu.main() == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", command)
    assert gpu.main() == 0
    assert capsys.readouterr().out.count("was exported before") == 2
    results = json.loads((tmp_path / "gpu.json").read_text())
    measured = [(detector, count) for detector in detectors for count in (1, 5)]
    assert [len(rows) for rows in results["stages_ms"].values()] == [6, 6, 10, 10]
    pipeline = [row for row in results["in_process"] if row["contender"] == "Pipeline"]
    assert [(row["detector"], row["detections"]) for row in pipeline] == measured
    for way in ("peer", "fused"):
        rows = [row for row in results["served"] if row["model"] == way]
        assert [(row["detector"], row["detections"]) for row in rows] == measured
        assert all(row["images_per_s"] > 0 for row in rows)
    assert all((tmp_path / f"gpu_{detector}.png").is_file() for detector in detectors)


def test_memory_under_load_is_watched(digits_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load("gpu_memory", monkeypatch)
    with running_server(digits_repository, ["digits_fused"]) as server:
        answers = benchmark.run_load(server, argparse.Namespace(name="digits_fused", seconds=2, clients=2))
    assert set(answers) == {"boxes"}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_overload_and_slow_clients_are_measured(
    digits_repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cores = os.sched_getaffinity(0)
    overload, slow_clients = load("overload", monkeypatch), load("slow_clients", monkeypatch)
    common = ["--repository", str(digits_repository)]
    monkeypatch.setattr(sys, "argv", ["overload.py", "--seconds", "6", "--best-s", "1", *common])
    monkeypatch.setattr(overload, "MIN_GOODPUT", 0.3)
    monkeypatch.setattr(overload, "MAX_RECOVERY_S", 5.0)
    try:
        overload.main()
    finally:
        os.sched_setaffinity(0, cores)
    printed = capsys.readouterr().out
    assert "--fused on, grpc" in printed and "--fused on, http" in printed
    (faults,) = (line for line in printed.splitlines() if "late, failed, wrong" in line)
    assert faults.count(", 0, 0 ") == 2
    monkeypatch.setattr(sys, "argv", ["slow_clients.py", "--idle", "200", "--slow", "20", *common])
    assert slow_clients.main() == 0
