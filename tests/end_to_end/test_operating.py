"""``rcnn-serve`` with the sample detector: how it ends, what it traces, and how it controls access."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from rcnn_backend.errors import ServerError
from rcnn_backend.server.access import Access, lock
from rcnn_backend.server.stub_processes import find_children, find_stubs
from rcnn_client import AccessDeniedError, CertificateError, Detector, RcnnError, TLSConfig

pytestmark = pytest.mark.xdist_group("server")

PICTURE = next((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))
STEPS = ("preprocess", "rpn", "proposals", "header", "detections")
TIMEOUT_S = 15.0
ACCEPTED_S = 0.1  # time after which the server has accepted a request
GRPC, HTTP = "--grpc-restricted-protocol", "--http-restricted-api"
DANGEROUS = {"model-repository", "shared-memory", "trace", "logging"}
CLIENTS = {"inference", "metadata", "model-config", "statistics"}


class Serving:
    """``rcnn-serve``, ready, as a process of its own, and clients that send requests without a pause."""

    def __init__(self, repository: Path, *options: str | Path) -> None:
        command = [Path(sys.executable).with_name("rcnn-serve"), repository, "--models", "digits", *options]
        ports = [f"--{protocol}-port=0" for protocol in ("http", "grpc", "metrics")]
        self.process = subprocess.Popen(
            [*command, *ports], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        serving = next(line for line in self.process.stdout if line.startswith("Serving"))
        self.urls = dict(re.findall(r"(http|grpc|metrics) (\S+?:\d+)", serving))
        self.waiting: dict[int, float] = {}  # client -> time of its last request
        self.answers: list[tuple[float, float, str]] = []  # when sent, when answered, the answer

    def stubs(self) -> dict[str, int]:
        """The process id of each model instance."""
        children = find_children(self.process.pid)
        return {stub.instance: pid for child in children for pid, stub in find_stubs(child).items()}

    def start_clients(self, count: int) -> list[threading.Thread]:
        """Start clients, each of which sends requests until it gets an answer other than boxes."""

        def ask(client: int) -> None:
            with Detector(self.urls["grpc"], "digits", retries=0, timeout_s=TIMEOUT_S) as detector:
                answer = "boxes"
                while answer == "boxes":
                    self.waiting[client] = asked = time.monotonic()
                    try:
                        detector.detect(PICTURE)
                    except RcnnError as error:
                        answer = f"{type(error).__name__}: {error}"
                    self.answers.append((asked, time.monotonic(), answer))

        clients = [threading.Thread(target=ask, args=(client,)) for client in range(count)]
        for client in clients:
            client.start()
        return clients

    def finish(self) -> tuple[int, str]:
        """Wait for the end; returns the exit code and stderr."""
        _, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stderr


def test_sigterm_under_load_answers_what_was_accepted(digits_repository: Path, tmp_path: Path) -> None:
    serving = Serving(digits_repository, "--fused", "off", "--trace", tmp_path / "traces")
    idle = http.client.HTTPConnection(serving.urls["http"])  # Triton alone would wait for open connections
    idle.request("GET", "/v2/health/ready")
    assert idle.getresponse().read() == b""
    clients = serving.start_clients(8)
    while len(serving.answers) < 12:
        time.sleep(0.05)
    deadline = time.monotonic() + 10
    while time.monotonic() < min(max(serving.waiting.values()) + ACCEPTED_S, deadline):
        time.sleep(0.01)
    told = time.monotonic()
    serving.process.send_signal(signal.SIGTERM)
    code, stderr = serving.finish()
    took_s = time.monotonic() - told
    for client in clients:
        client.join()
    in_flight = [
        answer for asked, answered, answer in serving.answers if asked < told - ACCEPTED_S < told < answered
    ]
    assert in_flight and set(in_flight) == {"boxes"}
    later = [answer for asked, _, answer in serving.answers if asked > told and answer != "boxes"]
    assert len(later) == 8 and all(answer.startswith("ServerUnavailableError") for answer in later)
    assert (code, stderr) == (0, "")
    assert took_s < 25

    traces = [each for path in (tmp_path / "traces").iterdir() for each in json.loads(path.read_text())]
    parents = {each["id"]: each["parent_id"] for each in traces if "parent_id" in each}
    names = {each["id"]: each["model_name"] for each in traces if "model_name" in each}
    request = next(number for number, name in names.items() if name == "digits")
    assert sorted(names[child] for child, parent in parents.items() if parent == request) == sorted(
        f"digits_{step}" for step in STEPS
    )


def test_a_step_killed_under_load_ends_the_command(digits_repository: Path) -> None:
    serving = Serving(digits_repository, "--fused", "off")
    stubs = serving.stubs()
    assert {re.sub(r"(_\d+)+$", "", name) for name in stubs} == {f"digits_{step}" for step in STEPS}
    clients = serving.start_clients(4)
    while len(serving.answers) < 4:
        time.sleep(0.05)
    os.kill(stubs["digits_proposals_0"], signal.SIGKILL)
    killed = time.monotonic()
    code, stderr = serving.finish()
    for client in clients:
        client.join()
    assert code == 1
    assert (
        "rcnn-serve: the process of digits_proposals_0 ended, and tritonserver does not restart it" in stderr
    )
    assert time.monotonic() - killed < 15
    assert all(answered - asked < TIMEOUT_S + 1 for asked, answered, _ in serving.answers)
    errors = Counter(answer.partition(":")[0] for *_, answer in serving.answers if answer != "boxes")
    assert errors.total() == 4 and set(errors) <= {"ServerError", "ServerUnavailableError"}


@pytest.mark.parametrize("after_s", [0.0, 0.3, 1.2])
def test_a_step_killed_while_the_server_starts_ends_the_command(
    digits_repository: Path, after_s: float
) -> None:
    """In the first milliseconds Triton would wait for it for ever; after loading its model it would not notice."""
    program = Path(sys.executable).with_name("rcnn-serve")
    ports = [f"--{protocol}-port=0" for protocol in ("http", "grpc", "metrics")]
    command = [program, digits_repository, "--models", "digits", "--fused", "off", *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        stubs: list[int] = []
        deadline = time.monotonic() + 60
        while not stubs and time.monotonic() < deadline:
            stubs = [pid for child in find_children(process.pid) for pid in find_stubs(child)]
        time.sleep(after_s)
        os.kill(stubs[0], signal.SIGKILL)
        killed = time.monotonic()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"^rcnn-serve: the process of (digits_\w+|a Python model) ended", stderr)
    assert time.monotonic() - killed < 15


def test_the_options_for_tls_and_a_token(digits_repository: Path, certificates: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    tls = ["--tls-cert", certificates / "server.pem", "--tls-key", certificates / "server.key"]
    serving = Serving(digits_repository, *tls, "--tls-ca", certificates / "ca.pem", "--token-file", token)
    own = TLSConfig(certificates / "ca.pem", certificates / "client.pem", certificates / "client.key")
    headers = {"triton-grpc-protocol-token": "secret"}
    with Detector(serving.urls["grpc"], "digits", tls=own, headers=headers) as detector:
        assert len(detector.detect(PICTURE))
    with Detector(serving.urls["grpc"], "digits", tls=own) as detector, pytest.raises(AccessDeniedError):
        detector.detect(PICTURE)
    without = TLSConfig(certificates / "ca.pem")
    with (
        Detector(serving.urls["grpc"], "digits", tls=without, headers=headers) as detector,
        pytest.raises(CertificateError),
    ):
        detector.detect(PICTURE)
    for path, status in {"health/ready": 200, "models/digits": 403, "models/digits/config": 403}.items():
        connection = http.client.HTTPConnection(serving.urls["http"])
        connection.request("GET", f"/v2/{path}", headers={"token": "secret", "Connection": "close"})
        assert connection.getresponse().status == status
    serving.process.send_signal(signal.SIGTERM)
    assert serving.finish()[0] == 0


def test_dangerous_apis_are_locked(digits_repository: Path) -> None:
    serving = Serving(digits_repository)
    with triton.InferenceServerClient(serving.urls["grpc"]) as client:
        for call in (
            lambda: client.unload_model("digits"),
            lambda: client.register_system_shared_memory("own", "/any", 64),
            lambda: client.update_trace_settings(settings={"trace_file": "/tmp/any"}),
            lambda: client.update_log_settings({"log_file": "/tmp/any"}),
        ):
            with pytest.raises(triton.InferenceServerException, match="restricted"):
                call()
        assert client.is_server_ready()
    serving.process.send_signal(signal.SIGTERM)
    assert serving.finish()[0] == 0


def locked(access: Access, *flags: str, host: str = "0.0.0.0") -> dict[str, dict[str, set[str]]]:
    """For each restriction: which APIs each of its headers unlocks."""
    found: dict[str, dict[str, set[str]]] = {}
    for flag in lock(access, flags, host=host).flags:
        restriction, _, value = flag.partition("=")
        if restriction in (GRPC, HTTP):
            apis, _, key = value.partition(":")
            found.setdefault(restriction, {})[key.partition("=")[0]] = set(apis.split(","))
    return found


def test_what_is_locked_with_which_header() -> None:
    assert locked(Access()) == {GRPC: {"rcnn-serve": DANGEROUS}, HTTP: {"rcnn-serve": DANGEROUS}}
    with_token = locked(Access(shared_memory=True, token="secret"))[GRPC]
    assert with_token == {"rcnn-serve": DANGEROUS - {"shared-memory"}, "token": {*CLIENTS, "shared-memory"}}
    own = locked(Access(token="secret"), f"{GRPC}=inference,trace:mine=1")
    assert own[GRPC] == {"rcnn-serve": DANGEROUS - {"trace"}, "token": CLIENTS - {"inference"}}
    assert own[HTTP] == {"rcnn-serve": DANGEROUS, "token": CLIENTS}
    assert lock(Access(), [f"{HTTP}=model-repository:admin=1=2"], host="").admin_headers == {"admin": "1=2"}


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("flags", [(), ("--model-control-mode=none",), ("--model-control-mode=poll",)])
def test_loading_models_is_locked_unless_the_mode_is_explicit(host: str, flags: tuple[str, ...]) -> None:
    for access in (Access(), Access(token="secret")):
        for apis in locked(access, *flags, host=host).values():
            assert apis["rcnn-serve"] == DANGEROUS


def test_in_explicit_mode_the_token_loads_models(certificates: Path) -> None:
    """Without a token, only clients on this host load models; over HTTP, nobody does if gRPC uses TLS."""
    explicit, loading = "--model-control-mode=explicit", {"model-repository"}
    rest = {"rcnn-serve": DANGEROUS - loading}
    with_token = {**rest, "token": CLIENTS | loading}
    assert locked(Access(token="secret"), explicit) == {GRPC: with_token, HTTP: with_token}
    assert lock(Access(token="secret"), [explicit], host="").admin_headers == {"token": "secret"}

    assert locked(Access(), explicit) == locked(Access())
    assert locked(Access(), explicit, host="127.0.0.1") == {GRPC: rest, HTTP: rest}
    assert lock(Access(), [explicit], host="127.0.0.1").admin_headers == {}
    assert locked(Access(), explicit, "--http-address=127.0.0.1") == {**locked(Access()), HTTP: rest}
    assert (
        locked(Access(), explicit, "--grpc-address=0.0.0.0", host="127.0.0.1")[GRPC] == locked(Access())[GRPC]
    )

    tls = {"tls_certificate": certificates / "server.pem", "tls_key": certificates / "server.key"}
    only_health = {"rcnn-serve": DANGEROUS | CLIENTS}
    for access in (Access(**tls), Access(**tls, token="secret")):
        assert locked(access, explicit, host="127.0.0.1")[HTTP] == only_health
        assert list(lock(access, [explicit], host="").admin_headers) == ["rcnn-serve"]
    assert locked(Access(**tls, token="secret"), explicit)[GRPC] == with_token
    own = locked(Access(token="secret"), explicit, f"{GRPC}=model-repository:mine=1")
    assert own == {GRPC: {**rest, "token": CLIENTS}, HTTP: with_token}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls_certificate": Path(__file__)}, "needs both a certificate and its key"),
        ({"tls_client_ca": Path(__file__)}, "--tls-ca has no effect without --tls-cert"),
        ({"tls_certificate": Path("absent"), "tls_key": Path(__file__)}, "there is no file absent for TLS"),
        ({"token": "two words"}, "openssl rand"),
    ],
)
def test_impossible_options_for_access(options: dict, message: str) -> None:
    with pytest.raises(ServerError, match=message):
        Access(**options)
