"""A Python model's process that died is reported; one that ended with its model is not. On the real tritonserver."""

import compileall
import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from rcnn_backend.contract.executions import GPU, NUMBER
from rcnn_backend.server import stub_processes
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_backend.server.stub_processes import (
    CRASHED_LOOKS,
    KILLED_LOOKS,
    Stub,
    StubWatch,
    find_children,
    find_stubs,
    read_stub,
)

MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "x") for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x.as_numpy())]) for x in tensors]
"""
CONFIG = """
backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
instance_group { count: COUNT kind: KIND_CPU }
"""
EXPLICIT = ("--model-control-mode=explicit", "--load-model=first", "--load-model=second")
ENDED_S, NOTICED_S = 15.0, 3.0


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """``first`` with one instance, ``second`` with two."""
    for name, count in {"first": 1, "second": 2}.items():
        folder = tmp_path / "models" / name
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(CONFIG.replace("COUNT", str(count)))
        (folder / "1" / "model.py").write_text(MODEL)
    return tmp_path / "models"


@contextlib.contextmanager
def client_of(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_url) as client:
        yield client


def instances(server_pid: int) -> dict[str, int]:
    """The process of each model instance."""
    return {stub.instance: pid for pid, stub in find_stubs(server_pid).items()}


def instances_of_command(pid: int) -> dict[str, int]:
    """The process of each model instance of the server that an rcnn-serve started."""
    return {name: stub for child in find_children(pid) for name, stub in instances(child).items()}


def look_until(condition: Callable[[], bool], server: RunningServer, timeout_s: float) -> list[str]:
    """Asks the server's watch, as rcnn-serve does, until the condition holds or time runs out; returns dead steps."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not condition():
        server.dead_steps()
        time.sleep(0.05)
    return server.dead_steps()


def test_a_model_that_is_unloaded_or_reloaded_does_not_count_as_dead(repository: Path) -> None:
    with running_server(repository, flags=EXPLICIT) as server, client_of(server) as client:
        before = instances(server.process.pid)
        assert set(before) == {"first_0_0", "second_0_0", "second_0_1"}
        client.unload_model("first")
        assert not look_until(lambda: "first_0_0" not in instances(server.process.pid), server, ENDED_S)
        assert "first_0_0" not in instances(server.process.pid)

        model = repository / "second" / "1" / "model.py"
        model.write_text(MODEL + "\n# changed\n")
        client.load_model("second")  # new processes first, then the end of the old ones
        old = {before["second_0_0"], before["second_0_1"]}
        assert not look_until(lambda: not old & set(find_stubs(server.process.pid)), server, ENDED_S)
        assert not old & set(find_stubs(server.process.pid))

        client.load_model("first")
        look_until(lambda: False, server, stub_processes.RESCAN_S + 0.2)
        os.kill(instances(server.process.pid)["first_0_0"], signal.SIGKILL)
        assert look_until(lambda: bool(server.dead_steps()), server, NOTICED_S) == ["first_0_0"]


@pytest.mark.long
def test_a_model_whose_folder_is_removed_under_poll_does_not_count_as_dead(repository: Path) -> None:
    assert compileall.compile_dir(repository, quiet=1)  # a new __pycache__ makes Triton reload a model
    flags = ["--model-control-mode=poll", "--repository-poll-secs=1"]
    with running_server(repository, flags=flags) as server:
        (repository / "first").rename(repository.parent / "elsewhere")
        assert not look_until(lambda: "first_0_0" not in instances(server.process.pid), server, ENDED_S)
        running = instances(server.process.pid)
        assert set(running) == {"second_0_0", "second_0_1"}
        os.kill(running["second_0_1"], signal.SIGKILL)
        assert look_until(lambda: bool(server.dead_steps()), server, NOTICED_S) == ["second_0_1"]


@pytest.mark.parametrize("flags", [(), ("--allow-http=false",), ("--model-control-mode=none",)])
def test_a_death_is_reported_if_models_stay(repository: Path, flags: tuple[str, ...]) -> None:
    with running_server(repository, flags=flags) as server:
        assert not server.dead_steps()
        os.kill(instances(server.process.pid)["second_0_0"], signal.SIGKILL)
        assert look_until(lambda: bool(server.dead_steps()), server, NOTICED_S) == ["second_0_0"]
        assert server.dead_steps() == ["second_0_0"]


def test_in_explicit_mode_a_killed_stub_ends_the_command_and_an_unloaded_model_does_not(
    repository: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    program = Path(sys.executable).with_name("rcnn-serve")
    ports = [f"--{protocol}-port=0" for protocol in ("http", "grpc", "metrics")]
    command = [program, repository, *ports, "--token-file", token, "--", *EXPLICIT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            serving = next(line for line in process.stdout if line.startswith("Serving"))
            urls = dict(re.findall(r"(http|grpc) (\S+?:\d+)", serving))
            with triton.InferenceServerClient(urls["grpc"]) as client:
                client.unload_model("first", headers={"triton-grpc-protocol-token": "secret"})
            deadline = time.monotonic() + ENDED_S
            while "first_0_0" in instances_of_command(process.pid) and time.monotonic() < deadline:
                time.sleep(0.05)
            running = instances_of_command(process.pid)
            assert set(running) == {"second_0_0", "second_0_1"}
            time.sleep(1)
            assert process.poll() is None
            os.kill(running["second_0_0"], signal.SIGKILL)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.terminate()
    assert process.returncode == 1
    assert "rcnn-serve: the process of second_0_0 ended" in stderr


def test_a_stub_that_dies_before_the_server_is_ready_ends_the_command(repository: Path) -> None:
    slow = "    def initialize(self, args):\n        import time\n        time.sleep(20)\n"
    model = repository / "second" / "1" / "model.py"
    model.write_text(MODEL.replace("    def execute", f"{slow}    def execute"))
    program = Path(sys.executable).with_name("rcnn-serve")
    ports = [f"--{protocol}-port=0" for protocol in ("http", "grpc", "metrics")]
    log = repository.parent / "log"
    command = [program, repository, *ports, "--log-file", log]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            found: dict[str, int] = {}
            deadline = time.monotonic() + 60
            while not ("first_0_0" in found and "successfully loaded 'first'" in log.read_text()):
                assert time.monotonic() < deadline
                found |= instances_of_command(process.pid)
            os.kill(found["first_0_0"], signal.SIGKILL)
            killed = time.monotonic()
            _, stderr = process.communicate(timeout=60)
        finally:
            process.terminate()
    assert process.returncode == 1
    ended = "the process of first_0_0 ended, and tritonserver does not restart it"
    assert f"rcnn-serve: {ended}; models still loading: second\n" in stderr
    assert time.monotonic() - killed < 10


def test_shorter_command_lines_of_other_tritons_are_read() -> None:
    line = ["/backends/python/triton_python_backend_stub", "/models/rpn/3/model.py", *"abcdef", "rpn_0_1"]
    assert read_stub([*line, "DEFAULT", ""]) == Stub("rpn_0_1", "rpn", "3")
    assert read_stub([*line[:5], ""]) == Stub("rpn", "rpn", "3")
    assert read_stub([*line[:8], "", ""]) == Stub("rpn", "rpn", "3")
    assert read_stub([line[0], "model.py", ""]) == Stub("a Python model", "", "")
    assert read_stub([line[0]]) == Stub("a Python model", "", "")


@contextlib.contextmanager
def running_stub(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child of this process that has a stub's program name and one argument."""
    program = folder / "triton_python_backend_stub"
    if not program.exists():
        program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as child:
        yield child
        child.kill()


@pytest.fixture
def short_stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A stub that seems to be the only child: libraries that other tests use leave other children, also zombies."""
    with running_stub(tmp_path) as child:

        def find(parent: int) -> dict[int, str]:
            return {pid: state for pid, state in find_children(parent).items() if pid == child.pid}

        monkeypatch.setattr(stub_processes, "find_children", find)
        yield child


def end(stub: subprocess.Popen[bytes], number: int) -> None:
    """Sends the signal and waits for the end. The stub stays a zombie."""
    stub.send_signal(number)
    os.waitid(os.P_PID, stub.pid, os.WEXITED | os.WNOWAIT)


def test_a_stub_with_a_short_command_line_is_watched(short_stub: subprocess.Popen[bytes]) -> None:
    watch = StubWatch(os.getpid(), "", {}, models_stay=True)
    assert watch.look() == []
    assert watch.stubs == {short_stub.pid: Stub("a Python model", "", "")}
    short_stub.kill()
    short_stub.wait()
    assert watch.look() == ["a Python model"]


def test_an_instance_that_died_is_reported_while_its_namesake_on_another_gpu_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton gives the instances of a model on GPU 0 and on GPU 1 the same name."""
    monkeypatch.setattr(stub_processes, "read_stub", lambda arguments: Stub("rpn_0_0", "rpn", "1"))
    prefix = str(tmp_path / "executions-")
    with running_stub(tmp_path) as first, running_stub(tmp_path) as second:
        for gpu, child in enumerate((first, second)):
            Path(f"{prefix}{child.pid}").write_bytes(NUMBER.pack(0) + GPU.pack(gpu))
        watch = StubWatch(os.getpid(), "", {}, models_stay=True, executions=prefix)
        assert watch.look() == []
        assert {pid: stub.gpu for pid, stub in watch.stubs.items()} == {first.pid: 0, second.pid: 1}
        second.kill()
        second.wait()
        assert watch.look() == ["rpn_0_0 on GPU 1"]


@pytest.mark.parametrize(
    ("number", "limit"), [(signal.SIGKILL, KILLED_LOOKS), (signal.SIGSEGV, CRASHED_LOOKS)]
)
def test_at_the_start_a_stub_that_triton_does_not_collect_is_dead(
    short_stub: subprocess.Popen[bytes], number: int, limit: int
) -> None:
    seen, late = (StubWatch(os.getpid(), "", {}, models_stay=True) for _ in range(2))
    assert seen.look_at_start() == []
    assert seen.stubs == {short_stub.pid: Stub("a Python model", "", "")} and not seen.uncollected
    end(short_stub, number)
    for watch in (seen, late):
        for looks in range(1, limit):
            assert watch.look_at_start() == []
            assert watch.uncollected[short_stub.pid] == looks
        assert watch.look_at_start() == watch.look_at_start() == ["a Python model"]


def test_at_the_start_a_stub_that_triton_collects_is_not_dead(short_stub: subprocess.Popen[bytes]) -> None:
    watch = StubWatch(os.getpid(), "", {}, models_stay=True)
    watch.look_at_start()
    end(short_stub, signal.SIGTERM)
    watch.look_at_start()
    assert short_stub.pid in watch.uncollected and short_stub.pid in watch.stubs
    short_stub.wait()
    for _ in range(CRASHED_LOOKS):
        assert watch.look_at_start() == []
    assert not watch.stubs and not watch.uncollected
    assert watch.look() == []


def test_a_server_that_does_not_answer_is_asked_again(
    short_stub: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str, headers: object) -> dict[tuple[str, str], str]:
        raise http.client.HTTPException("403")

    monkeypatch.setattr(stub_processes, "read_stub", lambda arguments: Stub("rpn_0", "rpn", "1"))
    monkeypatch.setattr(stub_processes, "model_states", refuse)
    watch = StubWatch(os.getpid(), "127.0.0.1:8000", {}, models_stay=False)
    assert watch.look() == []
    short_stub.kill()
    short_stub.wait()
    assert watch.look() == []
    monkeypatch.setattr(stub_processes, "model_states", lambda url, headers: {("rpn", "1"): "READY"})
    assert watch.look() == ["rpn_0"]
