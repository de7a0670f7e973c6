"""What a step publishes about its executions."""

import os
from pathlib import Path

import pytest
from rcnn_backend.contract.executions import (
    VARIABLE,
    Executions,
    read_executions,
    read_gpu,
    remove_executions,
)


def test_the_number_is_odd_during_an_execution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = str(tmp_path / "executions-")
    monkeypatch.setenv(VARIABLE, prefix)
    executions = Executions()
    assert read_executions(prefix, os.getpid()) == 0
    for number in (1, 3):
        with executions:
            assert read_executions(prefix, os.getpid()) == number
        assert read_executions(prefix, os.getpid()) == number + 1
    with pytest.raises(ValueError), executions:
        raise ValueError
    assert read_executions(prefix, os.getpid()) == 6
    remove_executions(prefix, os.getpid())
    assert read_executions(prefix, os.getpid()) == 0


@pytest.mark.parametrize("gpu", [None, 0, 1])
def test_the_gpu_is_written_after_the_number(
    gpu: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = str(tmp_path / "executions-")
    monkeypatch.setenv(VARIABLE, prefix)
    assert read_gpu(prefix, os.getpid()) is None
    with Executions(gpu):
        assert read_gpu(prefix, os.getpid()) == gpu
    assert read_executions(prefix, os.getpid()) == 2
    Path(f"{prefix}{os.getpid()}").write_bytes(bytes(8))  # of a process that does not write its GPU
    assert read_gpu(prefix, os.getpid()) is None


def test_without_a_reader_there_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with Executions():
        assert read_executions(str(tmp_path / "executions-"), os.getpid()) == 0


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing" / "executions-"))
    with pytest.raises(FileNotFoundError):
        Executions()
