"""The Multi-Process Service's daemon is started for the server and stopped after it. Here: a stand-in for it."""

import os
from pathlib import Path

import pytest
from rcnn_backend.errors import ServerError
from rcnn_backend.server.local_server import running_server
from rcnn_backend.server.mps import CONTROL, PIPES, running_mps

STAND_IN = """#!/bin/sh
echo "$@ $(cat) ${PIPES}" >> {calls}
echo it is said why
exit {code}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "server"
    path.mkdir()
    return path


def put_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> Path:
    """A program of the daemon's name, which writes down how it is called."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    (programs / CONTROL).write_text(STAND_IN.format(calls=calls, code=code, PIPES=f"{{{PIPES}}}"))
    (programs / CONTROL).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return calls


def test_the_daemon_lives_as_long_as_the_block(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = put_on_path(tmp_path, monkeypatch)
    with running_mps(folder) as environment:
        assert calls.read_text() == f"-d  {folder}/mps\n"
        assert environment[PIPES] == f"{folder}/mps"
    assert calls.read_text().splitlines()[1:] == [f" quit {folder}/mps"]


def test_a_daemon_that_does_not_start(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, monkeypatch, code=3)
    with pytest.raises(ServerError, match="exit code 3: it is said why"), running_mps(folder):
        pass


def test_without_the_driver_s_utilities(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerError, match=f"--mps needs {CONTROL}.*serve without --mps"), running_mps(folder):
        pass


@pytest.mark.xdist_group("deploy")
def test_the_server_is_told_of_the_daemon(
    digits_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = put_on_path(tmp_path, monkeypatch)
    with running_server(digits_repository, ["digits_preprocess"], mps=True) as server:
        started = calls.read_text().split()
        variables = Path(f"/proc/{server.process.pid}/environ").read_bytes().split(b"\0")
    assert f"{PIPES}={started[1]}".encode() in variables
    assert calls.read_text().split() == [*started, "quit", started[1]]
