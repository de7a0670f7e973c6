"""Hangs are reported, and slow requests are not: by the watch alone, and by rcnn-serve on the real tritonserver."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from rcnn_backend.contract.executions import NUMBER
from rcnn_backend.server import hangs
from rcnn_backend.server.arguments import parse_arguments
from rcnn_backend.server.hangs import HangWatch
from rcnn_backend.server.local_server import running_server
from rcnn_backend.server.stub_processes import Stub, StubWatch, find_stubs, is_stopped

MODEL = """
import threading, time
from rcnn_backend.steps.step import Step

class TritonPythonModel:
    def initialize(self, args):
        self.step = Step(args)

    def execute(self, requests):
        return self.step.answer_each(requests, self.run)

    def run(self, requests):
        print("got", len(requests), flush=True)
        for request in requests:
            value = request.tensors["x"].ravel()[0]
            if value < 0:
                deadlock = threading.Lock()
                deadlock.acquire()
                deadlock.acquire()
            until = time.process_time() + value
            while time.process_time() < until:
                pass
        return [{"y": request.tensors["x"]} for request in requests]
"""
CONFIG = """
backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
instance_group { count: 2 kind: KIND_CPU }
"""
TIMEOUT_S = 5.0


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """``first``: two instances of a step that computes for x seconds, and deadlocks if x is negative."""
    folder = tmp_path / "models" / "first"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "1" / "model.py").write_text(MODEL)
    return folder.parent


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends SIGSTOP or SIGCONT, and waits until it has taken effect."""
    process.send_signal(number)
    while is_stopped(process.pid) != (number == signal.SIGSTOP):
        pass


class Watched:
    """A watch with this process as the server and a child as its step, with a clock that the test sets."""

    def __init__(self, child: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.cpu_s = 0.0, 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(hangs, "cpu_seconds", lambda pid: self.cpu_s)
        self.stubs = {child: Stub("rpn_0", "rpn", "1")}
        self.file = folder / f"executions-{child}"
        self.watch = HangWatch(os.getpid(), "", "", str(folder / "executions-"), TIMEOUT_S)

    def execute(self, number: int) -> None:
        self.file.write_bytes(NUMBER.pack(number))

    def hang_after(self, up_to_s: int) -> tuple[int, str]:
        """Looks once a second. Returns after how many seconds a hang is reported, and the report; (0, "") if never."""
        for second in range(up_to_s + 1):
            self.now += 1
            if told := self.watch.look(self.stubs):
                return second, told
        return 0, ""


@pytest.fixture
def watched(child: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(child.pid, tmp_path, monkeypatch)


def test_a_step_without_requests_does_not_hang(watched: Watched) -> None:
    assert watched.hang_after(100) == (0, "")
    watched.execute(4)
    assert watched.hang_after(100) == (0, "")
    watched.stubs.clear()  # its model is unloaded
    assert watched.hang_after(100) == (0, "")
    assert not watched.file.exists()


def test_one_execution_that_does_not_compute_hangs_and_one_after_the_other_does_not(watched: Watched) -> None:
    for number in range(1, 99, 2):
        watched.execute(number)
        assert watched.hang_after(3) == (0, "")
    told = "rpn_0 has been processing the same requests for 5 s without using the processor"
    assert watched.hang_after(100) == (1, told)
    assert watched.watch.look(watched.stubs) == told


def test_an_execution_that_computes_has_ten_times_as_long(watched: Watched) -> None:
    watched.execute(7)
    for _ in range(10):
        watched.cpu_s += 1
        assert watched.hang_after(4) == (0, "")
    watched.cpu_s += 1
    assert watched.hang_after(4) == (0, "rpn_0 has been processing the same requests for 50 s")


def test_the_time_in_which_the_machine_slept_counts_as_one_look(watched: Watched) -> None:
    watched.execute(1)
    assert watched.hang_after(0) == (0, "")
    watched.now += 3600
    assert watched.hang_after(0) == (0, "")
    assert watched.hang_after(100)[1]


def test_a_stopped_step_is_reported_at_once_and_one_that_continues_is_not(
    watched: Watched, child: subprocess.Popen[bytes]
) -> None:
    send(child, signal.SIGSTOP)
    assert watched.hang_after(1) == (0, "")
    send(child, signal.SIGCONT)
    assert watched.hang_after(5) == (0, "")
    send(child, signal.SIGSTOP)
    assert watched.hang_after(5) == (2, "the process of rpn_0 was stopped by a signal")


def test_the_steps_are_not_blamed_for_a_server_that_hangs(
    watched: Watched, child: subprocess.Popen[bytes]
) -> None:
    watched.execute(1)
    assert watched.hang_after(3) == (0, "")
    send(child, signal.SIGSTOP)
    watched.watch.server_pid = child.pid
    assert watched.hang_after(100) == (5, "tritonserver was stopped by a signal")


def test_a_server_that_accepts_and_does_not_answer_hangs(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hangs, "ANSWER_S", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        watched.watch.url = f"127.0.0.1:{silent.getsockname()[1]}"
        watched.watch.path = "/v2/health/live"
        second, told = watched.hang_after(100)
    assert (second, told) == (
        5,
        f"tritonserver at {watched.watch.url} has not answered for 5 s without using the processor",
    )
    watched.watch.hung = ""
    assert watched.hang_after(100) == (0, "")  # nothing listens: the server is ending


def test_a_timeout_of_0_switches_it_off(watched: Watched) -> None:
    watched.watch.timeout_s = 0
    watched.execute(1)
    assert watched.hang_after(1000) == (0, "")


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_an_invalid_timeout_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments([f"--hang-timeout-s={value}"])
    assert f"--hang-timeout-s is {value}, expected seconds, or 0 for never" in capsys.readouterr().err


def test_a_watch_that_can_open_no_more_files_reports_no_dead_step(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *args: object, **options: object) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(self))

    watch = StubWatch(os.getpid(), "", {}, models_stay=True)
    watch.stubs[child.pid] = Stub("rpn_0", "rpn", "1")
    for method in ("read_text", "iterdir"):
        monkeypatch.setattr(Path, method, refuse)
    assert watch.look() == []
    monkeypatch.undo()
    child.kill()
    child.wait()
    assert watch.look() == ["rpn_0"]


class Serving:
    """``rcnn-serve`` in its own process, ready to serve."""

    def __init__(
        self, repository: Path, *arguments: str | Path, stderr: Path | int = subprocess.PIPE
    ) -> None:
        ports = [f"--{protocol}-port=0" for protocol in ("http", "grpc", "metrics")]
        command = [Path(sys.executable).with_name("rcnn-serve"), repository, *ports, *arguments]
        output = stderr.open("w") if isinstance(stderr, Path) else stderr
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True)
        assert self.process.stdout is not None
        serving = next(line for line in self.process.stdout if line.startswith("Serving"))
        url = re.search(r"grpc (\S+?:\d+)", serving)
        assert url
        self.client = triton.InferenceServerClient(url[1])
        self.server_pid = next(
            int(pid)
            for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            if find_stubs(int(pid))
        )

    def infer(self, value: float, token: str = "") -> float:
        tensor = triton.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.array([value], np.float32))
        headers = {"triton-grpc-protocol-token": token} if token else {}
        answer = self.client.infer("first", [tensor], client_timeout=20, headers=headers)
        return float(answer.as_numpy("y")[0])

    def finish(self) -> tuple[int, str]:
        """Waits for the process to end soon. Returns the exit code and stderr."""
        try:
            _, stderr = self.process.communicate(timeout=20)
        finally:
            self.process.kill()
            self.client.close()
        return self.process.returncode, stderr or ""


def test_a_deadlocked_step_ends_the_command(repository: Path, tmp_path: Path) -> None:
    """Its other instance still works. HTTP is off, the mode is explicit, and there is a token."""
    token = tmp_path / "token"
    token.write_text("secret\n")
    explicit = ["--model-control-mode=explicit", "--load-model=first"]
    serving = Serving(
        repository, "--hang-timeout-s=2", "--token-file", token, "--", "--allow-http=false", *explicit
    )
    assert serving.infer(0, "secret") == 0
    with pytest.raises(triton.InferenceServerException):
        serving.infer(-1, "secret")  # the connection is closed
    code, stderr = serving.finish()
    assert code == 1
    assert re.search(
        r"rcnn-serve: first_0_[01] has been processing the same requests for 2 s without using the processor: "
        r"stopping, so that whatever started rcnn-serve \(systemd, Docker, Kubernetes\) restarts it\n$",
        stderr,
    )


def test_a_server_that_was_stopped_ends_the_command(repository: Path) -> None:
    serving = Serving(repository, "--hang-timeout-s=2")
    os.kill(serving.server_pid, signal.SIGSTOP)
    code, stderr = serving.finish()
    assert code == 1
    assert stderr.startswith("rcnn-serve: tritonserver was stopped by a signal: stopping")
    assert not Path(f"/proc/{serving.server_pid}").exists()


def test_long_requests_are_answered_even_if_stderr_is_full(repository: Path) -> None:
    """The step prints a line for each request."""
    serving = Serving(repository, "--hang-timeout-s=1.5", stderr=Path("/dev/full"))
    assert serving.infer(2) == 2
    serving.process.terminate()
    assert serving.finish()[0] == 0


def test_a_server_that_was_stopped_ends_when_it_is_told_to(repository: Path) -> None:
    with running_server(repository) as server:
        os.kill(server.process.pid, signal.SIGSTOP)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15
    assert not list(Path("/dev/shm").glob(f"{server.served_from.parent.name}*-executions-*"))
