"""The command rcnn-perf without a server: how it finds and feeds perf_analyzer, reads its report and reports errors.

Shell scripts stand in for perf_analyzer here; the real program runs in end_to_end.
"""

import base64
import io
import json
import sys
from pathlib import Path

import pytest
from rcnn_client.tools.perf_analyzer import (
    Latencies,
    PerfAnalyzer,
    PerfAnalyzerError,
    find_library,
    find_perf_analyzer,
    write_input,
)
from rcnn_client.tools.perf_cli import choose_pictures, main
from rcnn_client.tools.perf_report import Measurement, latency_table, plot, step_table
from rcnn_client.tools.triton_statistics import StepTime, step_time
from rich.console import Console
from tritonclient.grpc import service_pb2

HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency"
)


def script(folder: Path, body: str) -> Path:
    """A shell script named perf_analyzer."""
    folder.mkdir(exist_ok=True)
    program = folder / "perf_analyzer"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return program


def lacking(library: str) -> str:
    """Shell code that prints and exits like a program for which the dynamic linker lacks a library."""
    return (
        f'echo "perf_analyzer: error while loading shared libraries: {library}: cannot open shared object file: '
        'No such file or directory" >&2; exit 127'
    )


def test_input_is_length_and_bytes_in_base64(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8" * 150)
    write_input([tmp_path / "a.jpg"], tmp_path / "input.json")
    (entry,) = json.loads((tmp_path / "input.json").read_text())["data"]
    element = base64.b64decode(entry["image"]["b64"])
    assert element == b"\x2c\x01\x00\x00" + b"\xff\xd8" * 150  # 300 = 0x012c, little-endian


def test_pictures_of_a_folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "c.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in choose_pictures(tmp_path)] == ["a.PNG", "b.jpg", "c.webp"]
    many = tmp_path / "many"
    many.mkdir()
    for number in range(250):
        (many / f"{number:03d}.jpg").touch()
    chosen = [int(path.stem) for path in choose_pictures(many)]
    assert len(chosen) == 100 and chosen[:4] == [0, 2, 5, 7] and chosen[-1] == 247
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no picture"):
        choose_pictures(tmp_path / "none")


def test_the_report_is_read(tmp_path):
    row = "4,20.27,12,30802,3,1449,155952,6642,4,187556,223944,244054,396049"
    program = script(
        tmp_path / "bin",
        f'for given in "$@"; do if [ "$last" = -f ]; then printf "{HEADER}\\n{row}\\n" > "$given"; fi; '
        'last="$given"; done; echo "$@" > "$LD_LIBRARY_PATH"',
    )
    analyzer = PerfAnalyzer(program, str(tmp_path / "called"))
    measured = analyzer.measure(
        "host:8001", "digits", tmp_path / "input.json", 4, 6, {"detections_per_img": 9}
    )
    assert measured == Latencies(20.27, 187.556, 223.944, 396.049)
    called = (tmp_path / "called").read_text()
    assert "-m digits -u host:8001 -i grpc" in called
    assert "--concurrency-range 4 -p 2000 --max-trials 3" in called  # three windows of 2 s
    assert "--request-parameter detections_per_img:9:int" in called


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('echo "Thread [1] had error: not an image"; exit 99', "had error: not an image"),
        ('echo "No valid requests recorded within time interval."', "No valid requests recorded"),
        ("exit 3", "it printed nothing"),
    ],
)
def test_a_failed_run_says_why(tmp_path, body, message):
    analyzer = PerfAnalyzer(script(tmp_path / "bin", body), "")
    with pytest.raises(PerfAnalyzerError, match=message.replace("[", r"\[")):
        analyzer.measure("host:8001", "digits", tmp_path / "input.json", 4, 6)


@pytest.fixture
def links(tmp_path):
    folder = tmp_path / "links"
    folder.mkdir()
    return folder


def test_a_missing_library_is_taken_from_a_wheel(tmp_path, links, monkeypatch):
    packages = tmp_path / "site-packages"
    bundled = packages / "server.libs" / "libb64-98cb6333.so.0d"
    own = packages / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
    for library in (bundled, own, packages / "server.libs" / "libb64x-1.so.0d"):
        library.parent.mkdir(parents=True, exist_ok=True)
        library.touch()
    needs = " ".join(
        f'[ -e "{links}/{name}" ] || {{ {lacking(name)}; }};' for name in ("libb64.so.0d", "libcudart.so.12")
    )
    script(tmp_path / "bin", f'{needs} [ "$1" = --version ]')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "path", [*sys.path[:1], str(packages)])
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    assert find_perf_analyzer(links).library_path == f"{links}:/opt/lib"
    assert (links / "libb64.so.0d").resolve() == bundled
    assert (links / "libcudart.so.12").resolve() == own


def test_a_bundled_library_may_have_a_longer_version(tmp_path):
    library = tmp_path / "server.libs" / "libcudart-09529672.so.12.6.77"
    library.parent.mkdir()
    library.touch()
    assert find_library("libcudart.so.12", [tmp_path]) == library
    assert find_library("libcudart.so.11.0", [tmp_path]) is None


@pytest.mark.parametrize(
    ("library", "advice"),
    [
        ("libb64.so.0d", "libb64.so.0d is missing: apt install libb64-0d"),
        ("libcudart.so.12", "pip install nvidia-cuda-runtime-cu12"),
        ("libodd.so.7", "libodd.so.7 is missing: install the package that contains it"),
    ],
)
def test_a_library_that_is_nowhere_is_named(tmp_path, links, monkeypatch, library, advice):
    script(tmp_path / "bin", lacking(library))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(PerfAnalyzerError, match=advice):
        find_perf_analyzer(links)


def test_another_fault_is_repeated(tmp_path, links, monkeypatch):
    script(tmp_path / "bin", "echo \"version 'GLIBC_2.38' not found\" >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(PerfAnalyzerError, match=r"does not start: version 'GLIBC_2\.38' not found"):
        find_perf_analyzer(links)


def test_no_perf_analyzer(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "scripts"))
    assert main([str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"rcnn-perf: perf_analyzer is neither on PATH nor in {tmp_path / 'scripts'}")
    assert "pip install 'tritonclient[grpc]==2.51.0'" in err and err.count("\n") == 1


def reading(requests: int, batches: int, queue_ms: float, infer_ms: float, copies_ms: float):
    """Triton's counters, which are sums over all requests."""
    statistics = service_pb2.ModelStatistics(inference_count=requests, execution_count=batches)
    parts = {
        "queue": queue_ms,
        "compute_infer": infer_ms,
        "compute_input": copies_ms,
        "compute_output": copies_ms,
    }
    for name, total_ms in parts.items():
        duration = getattr(statistics.inference_stats, name)
        duration.count, duration.ns = requests, int(total_ms * 1e6)
    return statistics


def test_step_time_by_hand():
    before, after = reading(100, 60, 50, 400, 10), reading(110, 64, 70, 450, 15)
    # 10 requests in 4 batches: 20 ms in the queue, 50 ms of computing and 2 x 5 ms of copying.
    assert step_time("rpn", before, after) == StepTime("rpn", 2, 6, 2.5)
    assert step_time("rpn", before, before) == StepTime("rpn", 0, 0, 0)


def test_tables_and_plot(tmp_path):
    steps = [StepTime("digits_rpn", 1, 5, 1.5), StepTime("digits_header", 0, 2, 1)]
    measurements = [
        Measurement(1, Latencies(12.34, 80, 90.06, 100), 0, steps),
        Measurement(4, None, 3, []),
    ]
    text = io.StringIO()
    Console(width=80, file=text).print(latency_table(measurements), step_table("digits", measurements))
    assert "│         1 │     12.3 │   80.0 │   90.1 │  100.0 │      0 │" in text.getvalue()
    assert "│         4 │        - │      - │      - │      - │      3 │" in text.getvalue()
    assert "│         1 │ rpn    │      1.0 │        5.0 │   75% │          1.5 │" in text.getvalue()
    assert "│           │ header │      0.0 │        2.0 │   25% │          1.0 │" in text.getvalue()
    plot("host:8001/digits", measurements, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()
    plot("host:8001/digits", measurements[1:], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
