"""``rcnn-serve`` and ``running_server`` with the real tritonserver on a repository of two small steps."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from rcnn_backend.contract.chain import CHAINS
from rcnn_backend.contract.configs import read_configs
from rcnn_backend.errors import RepositoryError, ServerError
from rcnn_backend.server import triton_install
from rcnn_backend.server.arguments import parse_arguments
from rcnn_backend.server.cli import main
from rcnn_backend.server.local_server import running_server
from rcnn_backend.server.log import load_failures, still_loading
from rcnn_backend.server.memory_pool import image_bytes
from rcnn_backend.server.model_selection import select_models

MODEL = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        import rcnn_backend  # the packages of the environment that runs rcnn-serve

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            print("plus_one got", x.ravel().tolist(), flush=True)
            time.sleep(max(0, -x.min()))
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)]))
        return responses
"""
TENSORS = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }
"""
ENSEMBLE = """
platform: "ensemble"
ensemble_scheduling {
  step { model_name: "plus_one" model_version: -1
         input_map { key: "x" value: "x" } output_map { key: "y" value: "m" } }
  step { model_name: "LAST" model_version: -1
         input_map { key: "x" value: "m" } output_map { key: "y" value: "y" } }
}
"""


def write_model(repository: Path, name: str, config: str, files: dict[str, str | bytes]) -> None:
    version_dir = repository / name / "1"
    version_dir.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config + TENSORS)
    for file_name, content in files.items():
        (version_dir / file_name).write_bytes(content.encode() if isinstance(content, str) else content)


def doubling_onnx() -> bytes:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    opset = onnx.helper.make_opsetid("", 17)
    model: bytes = onnx.helper.make_model(graph, ir_version=8, opset_imports=[opset]).SerializeToString()
    return model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The ensemble ``pair`` of plus_one (Python) and double (ONNX, by backends/onnxruntime)."""
    repository = tmp_path / "models"
    write_model(repository, "plus_one", 'backend: "python"', {"model.py": MODEL})
    write_model(repository, "double", 'backend: "onnxruntime"', {"model.onnx": doubling_onnx()})
    write_model(repository, "pair", ENSEMBLE.replace("LAST", "double"), {})
    return repository


@pytest.fixture
def unexported(repository: Path) -> Path:
    """``repository`` with a detector in it whose engine has not been exported."""
    write_model(repository, "digits", ENSEMBLE.replace("LAST", "digits_rpn"), {})
    write_model(repository, "digits_rpn", 'backend: "onnxruntime"', {"manifest.json": "{}"})
    return repository


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for all temporary files of this process and of the processes that it starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def infer(grpc_url: str, model: str, values: list[float]) -> list[float]:
    with contextlib.closing(triton.InferenceServerClient(grpc_url)) as client:
        x = triton.InferInput("x", [1, len(values)], "FP32")
        x.set_data_from_numpy(np.array([values], np.float32))
        answer: list[float] = client.infer(model, [x], client_timeout=60).as_numpy("y")[0].tolist()
        return answer


def processes_of(folder: Path) -> list[int]:
    """The processes, except zombies, that have the folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def tritonservers(folder: Path) -> list[int]:
    """The processes of ``processes_of`` that are tritonservers."""
    return [pid for pid in processes_of(folder) if Path(f"/proc/{pid}/exe").resolve().name == "tritonserver"]


def listening_addresses(folder: Path) -> list[str]:
    """The addresses of the TCP sockets on which the only tritonserver listens, as ``ss -ltn`` shows them."""
    (server,) = tritonservers(folder)
    files = [str(path.readlink()) for path in Path(f"/proc/{server}/fd").iterdir() if path.is_symlink()]
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{server}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in files:
                words = bytes.fromhex(local.partition(":")[0])
                address = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
                found.append(socket.inet_ntop(family, address).removeprefix("::ffff:"))  # IPv4 in IPv6
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def nothing_left(temporary: Path, folder_name: str) -> bool:
    shared_memory = list(Path("/dev/shm").glob(f"{folder_name}*"))
    return not (processes_of(temporary) or shared_memory or list(temporary.iterdir()))


class Command:
    """``rcnn-serve`` in its own process, ready to serve."""

    def __init__(self, *arguments: str | Path) -> None:
        ports = [f"--{protocol}-port=0" for protocol in ("http", "grpc", "metrics")]
        command = [Path(sys.executable).with_name("rcnn-serve"), *ports, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("Serving"):
                break
        self.grpc_url = self.lines[-1].partition("grpc ")[2].partition(",")[0]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def finish(self) -> tuple[int, str, str]:
        """Waits for the end. Returns the exit code, the rest of stdout, and stderr."""
        stdout, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stdout, stderr


@contextlib.contextmanager
def request_in_flight(grpc_url: str) -> Iterator[None]:
    """A request that keeps plus_one busy for 20 s."""
    client = triton.InferenceServerClient(grpc_url)
    x = triton.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.array([[-20]], np.float32))
    client.async_infer("plus_one", [x], callback=lambda result, error: None)
    time.sleep(1)
    yield
    client.close()


def test_serves_every_complete_model_and_leaves_nothing(unexported: Path, temporary: Path) -> None:
    with running_server(unexported) as server:
        (folder,) = temporary.iterdir()
        assert infer(server.grpc_url, "pair", [1, 2.5]) == [4, 7]
        assert server.models is not None and server.models.served == ["pair"]
        export = f"`rcnn-export faster_rcnn --name digits --repository {unexported}`"
        assert export in server.models.skipped["digits"]
        with pytest.raises(triton.InferenceServerException, match="restricted"):
            triton.InferenceServerClient(server.grpc_url).load_model("digits")
        assert list(Path("/dev/shm").glob(f"{folder.name}*"))
    assert server.process.returncode == 0
    assert nothing_left(temporary, folder.name)


def test_an_odd_path_is_served(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository's path and TMPDIR contain characters that the shell, a locale or UTF-8 cannot handle."""
    odd = tmp_path / os.fsdecode(b"a (b) 'c' \"$d\" &;\n \xc3\xa4 \xff")
    (odd / "temporary").mkdir(parents=True)
    repository = repository.rename(odd / "models")
    monkeypatch.setenv("TMPDIR", str(odd / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with running_server(repository) as server:
        assert infer(server.grpc_url, "pair", [1, 2.5]) == [4, 7]
        assert [stub.model for stub in server.watch.stubs.values()].count("plus_one") == 1
    model = repository / "plus_one" / "1" / "model.py"
    model.write_text("import no_such_package\n")
    with pytest.raises(ServerError, match=re.escape(f"(at {model}(1): <module>)")):
        running_server(repository).__enter__()


def test_the_command_serves_until_a_signal(repository: Path, temporary: Path) -> None:
    command = Command(repository, "--models", "pair", "--", "--exit-timeout-secs", "20")
    (folder,) = temporary.iterdir()
    assert infer(command.grpc_url, "pair", [1]) == [4]
    assert listening_addresses(temporary) == ["127.0.0.1"] * 3
    time.sleep(0.5)
    command.signal(signal.SIGTERM)
    code, _, stderr = command.finish()
    assert (code, stderr) == (0, "plus_one got [1.0]\n")  # the model's output, no routine lines
    assert command.lines[-1].startswith("Serving pair at http 127.0.0.1:")
    assert nothing_left(temporary, folder.name)


@pytest.mark.parametrize(
    ("host", "addresses", "printed", "reached_at", "is_warned"),
    [
        ("::1", {"::1"}, "[::1]", "[::1]", False),
        ("0.0.0.0", {"0.0.0.0", "::"}, "0.0.0.0", "127.0.0.1", True),  # gRPC listens to IPv6, too
        ("::", {"::"}, "[::]", "[::1]", True),
    ],
)
def test_the_address_to_listen_on(
    repository: Path,
    temporary: Path,
    host: str,
    addresses: set[str],
    printed: str,
    reached_at: str,
    is_warned: bool,
) -> None:
    command = Command(repository, "--models", "pair", "--host", host)
    assert set(listening_addresses(temporary)) == addresses
    http, grpc = (
        re.search(rf"{name} {re.escape(printed)}:(\d+)", command.lines[-1]) for name in ("http", "grpc")
    )
    assert http and grpc
    assert infer(f"{reached_at}:{grpc[1]}", "pair", [1]) == [4]
    with urllib.request.urlopen(f"http://{reached_at}:{http[1]}/v2/health/ready", timeout=5) as answer:
        assert answer.status == 200
    command.signal(signal.SIGTERM)
    code, _, stderr = command.finish()
    assert code == 0
    warning = (
        f"Warning: other hosts may reach http {printed}:{http[1]} and grpc {printed}:{grpc[1]} without TLS"
    )
    assert stderr.startswith(warning) is is_warned


def pretend_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Puts an nvidia-smi that prints ``answer`` on PATH, in a new folder."""
    nvidia_smi = folder / "nvidia-smi"
    folder.mkdir()
    nvidia_smi.write_text(f"#!/bin/sh\necho '{answer}'\n")
    nvidia_smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_on_a_gpu_the_memory_pool_is_sized(
    digits_repository: Path, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(tmp_path / "bin", monkeypatch, "0, 81559")
    command = Command(
        digits_repository, "--models", "digits", "--mps", "off", "--fused", "off", "--images-in-flight", "4"
    )
    (server,) = tritonservers(temporary)
    flags = Path(f"/proc/{server}/cmdline").read_text().split("\0")
    command.signal(signal.SIGTERM)
    assert command.finish()[0] == 0
    size = 4 * 2 * image_bytes(read_configs(digits_repository), "digits")
    assert {f"--cuda-memory-pool-byte-size=0:{size}", "--pinned-memory-pool-byte-size=0"} < set(flags)
    (summary,) = [line for line in command.lines if line.startswith("CUDA memory pool")]
    assert summary.endswith(f"for 4 images in flight ({size / 8e6:.0f} MB each, twice)\n")


def test_the_server_sees_the_chosen_gpus_only(
    repository: Path,
    temporary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend_gpus(tmp_path / "bin", monkeypatch, "0, 81559\n1, 81559")
    command = Command(repository, "--mps", "off", "--gpus", "1")
    (server,) = tritonservers(temporary)
    assert b"CUDA_VISIBLE_DEVICES=1" in Path(f"/proc/{server}/environ").read_bytes().split(b"\0")
    command.signal(signal.SIGTERM)
    assert command.finish()[0] == 0
    assert main([str(repository), "--gpus", "0,2"]) == 1
    assert "rcnn-serve: --gpus names GPU 2, and those" in capsys.readouterr().err


def test_a_second_signal_kills(repository: Path, temporary: Path) -> None:
    command = Command(repository)
    (folder,) = temporary.iterdir()
    with request_in_flight(command.grpc_url):
        command.signal(signal.SIGINT)
        time.sleep(1)
        assert command.process.poll() is None
        command.signal(signal.SIGTERM)
        assert command.finish()[0] == 130
    wait_until(lambda: nothing_left(temporary, folder.name))


def test_nothing_is_left_when_the_command_is_killed(repository: Path, temporary: Path) -> None:
    command = Command(repository)
    (folder,) = temporary.iterdir()
    (server,) = tritonservers(temporary)
    os.kill(server, signal.SIGSTOP)  # even if the server hangs
    command.signal(signal.SIGKILL)
    command.finish()
    wait_until(lambda: nothing_left(temporary, folder.name))


def test_a_server_that_dies_is_reported(repository: Path, temporary: Path) -> None:
    command = Command(repository)
    (server,) = tritonservers(temporary)
    os.kill(server, signal.SIGKILL)
    code, _, stderr = command.finish()
    assert code == 128 + signal.SIGKILL
    assert "tritonserver ended with exit code -9" in stderr
    (log,) = temporary.iterdir()
    assert f"whole log: {log}" in stderr and "successfully loaded 'pair'" in log.read_text()


def test_a_failure_that_is_reported_leaves_no_open_file(repository: Path, temporary: Path) -> None:
    with running_server(repository) as server:
        open_files = list(Path("/proc/self/fd").iterdir())
        messages = [server.failure() for _ in range(3)]
        assert len(list(Path("/proc/self/fd").iterdir())) == len(open_files)
    logs = list(temporary.iterdir())
    assert len(logs) == 3
    for log in logs:
        assert any(f"whole log: {log}" in message for message in messages)
        assert "successfully loaded 'pair'" in log.read_text()


def test_flags_choose_the_models_by_their_own_control_mode(unexported: Path, tmp_path: Path) -> None:
    flags = ["--model-control-mode=explicit", "--load-model=plus_one", "--allow-metrics=false"]
    log = tmp_path / "server.log"
    with running_server(unexported, flags=flags, log=log) as server:
        assert server.models is None and set(server.urls) == {"http", "grpc"}
        client = triton.InferenceServerClient(server.grpc_url)
        assert client.is_model_ready("plus_one") and not client.is_model_ready("pair")
        client.load_model("pair")
        assert client.is_model_ready("pair")
    assert "successfully loaded 'pair'" in log.read_text()


def test_a_broken_step_is_named_with_its_reason(
    repository: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = repository / "plus_one" / "1" / "model.py"
    model.write_text("import no_such_package\n")
    ports = [f"--{protocol}-port=0" for protocol in ("http", "grpc", "metrics")]
    assert main([str(repository), *ports]) == 1
    stderr = capsys.readouterr().err
    (log,) = temporary.iterdir()
    assert stderr.splitlines() == [
        "rcnn-serve: model plus_one failed to load: ModuleNotFoundError: No module named 'no_such_package' "
        f"(at {model}(1): <module>)",
        f"The server's whole log: {log}",
    ]


def test_a_step_that_crashes_or_never_loads_is_named(repository: Path, temporary: Path) -> None:
    model = repository / "plus_one" / "1" / "model.py"
    model.write_text("import os\nos.abort()\n")
    with pytest.raises(ServerError, match=r"model plus_one failed to load: .*Stub process .* is not healthy"):
        running_server(repository).__enter__()
    model.write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(ServerError, match="not ready after 3 s; models still loading: plus_one"):
        running_server(repository, ready_timeout_s=3).__enter__()
    assert {path.suffix for path in temporary.iterdir()} == {".log"}
    wait_until(lambda: not processes_of(temporary))


def test_an_unknown_flag_is_reported_without_the_help(repository: Path, temporary: Path) -> None:
    with pytest.raises(ServerError, match="unrecognized option '--bogus=1'") as caught:
        running_server(repository, flags=["--bogus=1"]).__enter__()
    assert len(str(caught.value).splitlines()) < 5


def test_a_taken_port_is_named_with_its_flag(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert main([str(repository), "--http-port=0", f"--grpc-port={port}"]) == 1
    assert f"port {port} is taken, choose another with --grpc-port" in capsys.readouterr().err


def test_repositories_that_cannot_be_served(unexported: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"no model repository .*/absent"):
        select_models(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError, match=r"holds no model .* `rcnn-export .*/empty`"):
        select_models(tmp_path / "empty")
    with pytest.raises(RepositoryError, match="has no model peer; it has digits, digits_rpn, double"):
        select_models(unexported, ["pair", "peer"])
    with pytest.raises(RepositoryError, match=r"digits: missing digits_rpn/1/model\.\*; `rcnn-export"):
        select_models(unexported, ["digits"])
    (unexported / "digits_rpn" / "1" / "model.onnx").write_bytes(b"any")
    assert select_models(unexported).served == ["digits", "pair"]
    (unexported / "double" / "config.pbtxt").write_text("backend: 3")
    with pytest.raises(RepositoryError, match=r"double/config.pbtxt cannot be read .*1:10"):
        select_models(unexported)


def test_templates_do_not_count_as_broken_models(repository: Path, tmp_path: Path) -> None:
    """Templates in git have configs but no engines. Alone, they give one hint; next to other models, no message."""
    templates = Path(__file__).resolve().parents[3] / "model_repository"
    tracked = [path for family in CHAINS for path in templates.glob(f"{family}_*")] + [
        templates / "faster_rcnn"
    ]
    for path in tracked:
        shutil.copytree(path, tmp_path / "clone" / path.name)
        shutil.copytree(path, repository / path.name)
    with pytest.raises(RepositoryError) as caught:
        select_models(tmp_path / "clone")
    assert re.fullmatch(
        r".*/clone holds no exported detector yet: run `rcnn-export .*/clone`", str(caught.value)
    )
    selection = select_models(repository)
    assert (selection.served, selection.skipped) == (["pair"], {})
    with pytest.raises(
        RepositoryError, match=r"faster_rcnn: missing faster_rcnn/1/, .*`rcnn-export faster_rcnn "
    ):
        select_models(repository, ["faster_rcnn"])


def test_environments_that_cannot_serve(
    repository: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> None:
        running_server(repository).__enter__()

    with monkeypatch.context() as patch, pytest.raises(ServerError, match="pip install nvidia-pytriton"):
        patch.setattr("importlib.util.find_spec", lambda name: None)
        start()
    with monkeypatch.context() as patch, pytest.raises(ServerError, match=r"NumPy is 2\.3\.1 in "):
        patch.setattr("rcnn_backend.server.numpy_version.read_version", lambda package: "2.3.1")
        start()
    with monkeypatch.context() as patch, pytest.raises(ServerError, match=r"Python is 3\.99.* 3\.10, 3\.11"):
        patch.setattr(triton_install, "PYTHON_VERSION", "3.99")
        start()
    # The stub of a Python that is not installed here: its libpython cannot be found.
    with monkeypatch.context() as patch, pytest.raises(ServerError, match=r"apt install libpython3\.8"):
        patch.setattr(triton_install, "PYTHON_VERSION", "3.8")
        start()
    assert not list(temporary.iterdir())


def test_flags_after_two_dashes_pass_through() -> None:
    options, flags = parse_arguments(
        [
            "repository",
            "--models",
            "a",
            "b",
            "--",
            "--log-verbose",
            "1",
            "--disable-auto-complete-config",
            "--a=b",
        ]
    )
    assert (options.repository, options.models) == (Path("repository"), ["a", "b"])
    assert flags == ["--log-verbose=1", "--disable-auto-complete-config", "--a=b"]
    options, flags = parse_arguments([])
    assert (options.host, options.mps, options.fused, flags) == ("127.0.0.1", "auto", "auto", [])
    assert options.gpus is None
    assert parse_arguments(["--gpus", "1, 0"])[0].gpus == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--grpc-prot", "1"],
            r"no option --grpc-prot: did you mean --grpc-port\? .* rcnn-serve -- --grpc-prot",
        ),
        (
            ["--strict-readiness=true"],
            r"no option --strict-readiness\. .* rcnn-serve -- --strict-readiness=true",
        ),
        (["repository", "another"], "unexpected argument 'another'"),
        (["--", "verbose"], "'verbose' is not a flag of tritonserver"),
        (["--", "--http-port=1"], "--http-port is an option of rcnn-serve: give it before the --"),
        (["--models", "a", "--", "--model-control-mode=poll"], "--load-model=NAME instead"),
        (["--fused", "on", "--", "--model-control-mode=poll"], "load NAME_fused instead"),
        (["--images-in-flight", "0"], "expected at least 1"),
        (["--gpus", ""], "--gpus: '' is not a GPU number, expected a list such as 0,1"),
        (["--gpus", "0,-1"], "--gpus: '-1' is not a GPU number"),
        (["--gpus", "1,0,1"], "--gpus: GPU 1 is named twice"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_the_log_of_a_failed_start_is_read() -> None:
    log = (
        'I1 model_lifecycle.cc:472] "loading: a:1"\nI1 model_lifecycle.cc:472] "loading: b:1"\n'
        "I1 model_lifecycle.cc:839] \"successfully loaded 'a'\"\n"
        "error: creating server: Invalid argument - load failed for model 'c': no version is available\n"
        "load failed for model 'd': ensemble 'd' depends on 'e' which has no loaded version. "
        "Model 'e' loading failed with error: version 1 is at UNAVAILABLE state: Internal: bad;;\n\n"
    )
    assert load_failures(log) == {"c": "no version is available", "e": "bad"}
    assert still_loading(log) == ["b"]
