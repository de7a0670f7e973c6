"""The Multi-Process Service's daemon is started for the server and stopped after it. These tests use a fake daemon."""

import contextlib
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rcnn_backend.errors import ServerError
from rcnn_backend.server import mps
from rcnn_backend.server.acceleration import accelerate
from rcnn_backend.server.local_server import running_server
from rcnn_backend.server.model_selection import ModelSelection
from rcnn_backend.server.mps import CONTROL, PIPES, running_mps

STAND_IN = """#!/bin/sh
echo "$@ $(cat) ${PIPES}" >> {calls}
echo "$CUDA_VISIBLE_DEVICES" >> {calls}.visible
echo it is said why
exit {code}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "server"
    path.mkdir()
    return path


def put_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0, probe: str = "raise SystemExit"
) -> Path:
    """Puts a program with the daemon's name on PATH that records its calls; ``probe``: the code of its client."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    (programs / CONTROL).write_text(STAND_IN.format(calls=calls, code=code, PIPES=f"{{{PIPES}}}"))
    (programs / CONTROL).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv(PIPES, raising=False)
    monkeypatch.setattr(mps, "PROBE", probe)
    return calls


def put_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes an nvidia-smi that reports one GPU, and an installed CuPy."""
    (tmp_path / "gpu").mkdir()
    nvidia_smi = tmp_path / "gpu" / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho '0, 81559'\n")
    nvidia_smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(nvidia_smi.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)


def test_the_daemon_lives_as_long_as_the_block(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = put_on_path(tmp_path, monkeypatch)
    with running_mps(folder) as environment:
        assert calls.read_text().startswith(f"-d  {folder}/mps\n")
        assert environment[PIPES] == f"{folder}/mps"
    assert calls.read_text().splitlines()[1:] == [f" get_server_list {folder}/mps", f" quit {folder}/mps"]


def test_a_daemon_that_does_not_start(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, monkeypatch, code=3)
    with pytest.raises(ServerError, match="exit code 3: it is said why"), running_mps(folder):
        pass


def test_without_the_driver_s_utilities(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with (
        pytest.raises(ServerError, match=f"{CONTROL}.* is not on PATH.*=compute,utility"),
        running_mps(folder),
    ):
        pass


def test_a_daemon_through_which_nothing_computes_is_ended(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = put_on_path(tmp_path, monkeypatch, probe="raise SystemExit('CUDA error 46')")
    with pytest.raises(ServerError, match=r"no program can use the GPU through MPS \(CUDA error 46\)"):
        running_mps(folder).__enter__()
    assert calls.read_text().splitlines()[1:] == [f" quit {folder}/mps"]


def test_a_daemon_of_the_environment_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = put_on_path(tmp_path, monkeypatch)
    monkeypatch.setenv(PIPES, "/tmp/nvidia-mps")
    with running_mps(folder) as environment:
        assert environment == {}
    assert calls.read_text() == " get_server_list /tmp/nvidia-mps\n"


@pytest.mark.parametrize(("visible", "given"), [("1", ""), ("1, 0", ""), ("MIG-c738", "MIG-c738")])
def test_only_the_clients_get_the_numbers_of_gpus(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, given: str
) -> None:
    calls = put_on_path(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with running_mps(folder):
        assert set(calls.with_suffix(".visible").read_text().splitlines()) == {given}


MODELS = ModelSelection(["cats", "cats_pixels"], {}, ["cats"], {"cats": True})


@pytest.mark.parametrize(
    ("fused", "starts", "chosen", "said"),
    [
        ("auto", True, [], ["MPS is on", "cats_fused is faster still: --fused on serves it as cats"]),
        ("on", True, ["cats"], ["MPS is on", "cats is served by cats_fused"]),
        (
            "auto",
            False,
            ["cats"],
            ["MPS is off, .* less than half .*exit code 3", "cats is served by cats_fused"],
        ),
        ("off", False, [], ["MPS is off", "cats_fused is faster still"]),
    ],
)
def test_on_a_gpu_a_detector_is_fast_by_default(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fused: str,
    starts: bool,
    chosen: list[str],
    said: list[str],
) -> None:
    put_on_path(tmp_path, monkeypatch, code=0 if starts else 3)
    put_gpu(tmp_path, monkeypatch)
    with contextlib.ExitStack() as opened:
        found = accelerate("auto", fused, MODELS, folder, opened)
    assert found.fused == chosen and (PIPES in found.environment) is starts
    assert len(found.notes) == len(said)
    for note, expected in zip(found.notes, said, strict=True):
        assert re.match(expected, note)


@pytest.mark.parametrize(("fused", "chosen"), [("auto", ["cats"]), ("off", [])])
def test_without_a_gpu_a_detector_is_fused_by_default(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: str, chosen: list[str]
) -> None:
    calls = put_on_path(tmp_path, monkeypatch)
    models = replace(MODELS, ensembles={"cats": True, "without_fused": False})
    with contextlib.ExitStack() as opened:
        found = accelerate("auto", fused, models, folder, opened)
    assert (found.environment, found.fused) == ({}, chosen) and not calls.exists()
    assert len(found.notes) == len(chosen)


def test_mps_that_is_required_and_cannot_be_started(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path, monkeypatch, code=3)
    with (
        contextlib.ExitStack() as opened,
        pytest.raises(ServerError, match=r"cannot be started: .*--mps auto"),
    ):
        accelerate("on", "auto", MODELS, folder, opened)


@pytest.mark.xdist_group("deploy")
def test_the_server_is_told_of_the_daemon(
    digits_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = put_on_path(tmp_path, monkeypatch)
    with running_server(digits_repository, ["digits_preprocess"], mps="on") as server:
        started = calls.read_text().split()
        variables = Path(f"/proc/{server.process.pid}/environ").read_bytes().split(b"\0")
    assert f"{PIPES}={started[1]}".encode() in variables
    assert calls.read_text().split() == [*started, "quit", started[1]]
