"""Who can list, load and unload models on the real tritonserver, in each ``--model-control-mode``."""

import http.client
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from rcnn_backend.server.access import Access
from rcnn_backend.server.local_server import RunningServer, running_server

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
"""
EXPLICIT = ("--model-control-mode=explicit", "--load-model=first")
EVERYWHERE = "0.0.0.0"
TOKEN = {"triton-grpc-protocol-token": "secret"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two models, ``first`` and ``second``."""
    for name in ("first", "second"):
        folder = tmp_path / "models" / name
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(CONFIG)
        (folder / "1" / "model.py").write_text(MODEL)
    return tmp_path / "models"


def over_grpc(
    server: RunningServer, call: str, *arguments: str, headers: dict[str, str] | None = None
) -> Any:
    with triton.InferenceServerClient(server.grpc_url) as client:
        return getattr(client, call)(*arguments, headers=headers)


def over_http(server: RunningServer, method: str, path: str, headers: dict[str, str] | None = None) -> Any:
    """The answer's JSON, or its status if that is not 200."""
    connection = http.client.HTTPConnection(server.urls["http"])
    connection.request(method, path, headers={"Connection": "close", **(headers or {})})
    answer = connection.getresponse()
    body = answer.read()
    return json.loads(body or "null") if answer.status == http.client.OK else answer.status


def loads_models(server: RunningServer, headers: dict[str, str] | None = None) -> tuple[bool, bool]:
    """Whether a client can load the second model: over gRPC, over HTTP."""
    try:
        over_grpc(server, "load_model", "second", headers=headers)
        grpc = True
    except triton.InferenceServerException as error:
        assert "restricted" in str(error)
        grpc = False
    token = {"token": "secret"} if headers else {}
    status = over_http(server, "POST", "/v2/repository/models/second/load", token)
    assert status in (None, 403)
    return grpc, status is None


@pytest.mark.parametrize("flags", [(), ("--model-control-mode=none",), ("--model-control-mode=poll",)])
def test_only_explicit_mode_lets_clients_load_models(repository: Path, flags: Sequence[str]) -> None:
    with running_server(repository, flags=flags, access=Access(token="secret")) as server:
        assert loads_models(server) == (False, False)
        assert loads_models(server, TOKEN) == (False, False)


def test_loading_models_needs_the_token(repository: Path) -> None:
    with running_server(repository, flags=EXPLICIT, access=Access(token="secret")) as server:
        assert loads_models(server) == (False, False)
        assert loads_models(server, TOKEN) == (True, True)


def test_without_a_token_only_this_host_loads_models(repository: Path) -> None:
    with running_server(repository, flags=EXPLICIT) as server:
        assert loads_models(server) == (True, True)
    with running_server(repository, host=EVERYWHERE, flags=EXPLICIT) as server:
        assert loads_models(server) == (False, False)
    own = [*EXPLICIT, "--grpc-address=127.0.0.1"]
    with running_server(repository, host=EVERYWHERE, flags=own) as server:
        assert loads_models(server) == (True, False)


@pytest.mark.parametrize("flags", [(), EXPLICIT])
@pytest.mark.parametrize("access", [Access(), Access(token="secret")])
def test_clients_list_the_models_by_their_statistics(
    repository: Path, flags: Sequence[str], access: Access
) -> None:
    loaded = {"first"} if flags else {"first", "second"}
    with running_server(repository, host=EVERYWHERE, flags=flags, access=access) as server:
        answer = over_grpc(server, "get_inference_statistics", headers=TOKEN)
        assert {model.name for model in answer.model_stats} == loaded
        token = {"token": "secret"}
        answer = over_http(server, "GET", "/v2/models/stats", token)
        assert {model["name"] for model in answer["model_stats"]} == loaded
        if access.token:
            assert over_http(server, "GET", "/v2/models/stats") == 403
            with pytest.raises(triton.InferenceServerException, match="restricted"):
                over_grpc(server, "get_inference_statistics")
        # Triton restricts the repository's index only together with loading and unloading.
        index_is_open = bool(flags and access.token)
        assert (over_http(server, "POST", "/v2/repository/index", token) == 403) is not index_is_open


def test_shared_memory_is_open_by_default_only_where_this_host_alone_reaches_the_server(
    repository: Path,
) -> None:
    status = "/v2/systemsharedmemory/status"
    with running_server(repository, ["first"]) as server:
        assert over_http(server, "GET", status) == []
    for flag in ("--http-address=0.0.0.0", "--grpc-address=0.0.0.0"):
        with running_server(repository, ["first"], flags=[flag]) as server:
            assert over_http(server, "GET", status) == 403
