"""Proxies in the environment: none is used for this host, and an error through a proxy names the variable."""

import asyncio

import pytest
from rcnn_client import Detector, ServerUnavailableError, aio
from rcnn_client._proxies import VARIABLES, is_loopback, proxy_variable

NO_PROXY_THERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in (*VARIABLES, "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_server_on_this_host_is_called_directly(server, png, monkeypatch, name):
    monkeypatch.setenv(name, NO_PROXY_THERE)
    with Detector(server.url, timeout_s=10, retries=0) as detector:
        assert len(detector.detect(png(1))) == 3


async def _detect(url: str, image: bytes) -> int:
    async with aio.Detector(url, timeout_s=10, retries=0) as detector:
        return len(await detector.detect(image))


def test_the_asynchronous_client_calls_it_directly_too(server, png, monkeypatch):
    monkeypatch.setenv("http_proxy", NO_PROXY_THERE)
    assert asyncio.run(_detect(server.url, png(1))) == 3


def test_an_error_names_the_variable(monkeypatch):
    monkeypatch.setenv("https_proxy", NO_PROXY_THERE)
    message = (
        r"proxy of the environment variable https_proxy: if it should not, add triton.example to no_proxy"
    )
    with (
        Detector("triton.example:8001", timeout_s=5, retries=0) as detector,
        pytest.raises(ServerUnavailableError, match=message),
    ):
        detector.detect(b"any")


def test_which_variable_counts(monkeypatch):
    assert proxy_variable("gpu.example:8001") == ""
    monkeypatch.setenv("http_proxy", NO_PROXY_THERE)
    assert proxy_variable("gpu.example:8001") == "http_proxy"
    monkeypatch.setenv("https_proxy", "")
    assert proxy_variable("gpu.example:8001") == "http_proxy"
    monkeypatch.setenv("grpc_proxy", NO_PROXY_THERE)
    assert proxy_variable("gpu.example:8001") == "grpc_proxy"
    monkeypatch.setenv("no_proxy", "other.example, .example")
    assert proxy_variable("gpu.example:8001") == ""
    monkeypatch.setenv("no_grpc_proxy", "other.example")  # overrides no_proxy
    assert proxy_variable("gpu.example:8001") == "grpc_proxy"
    assert proxy_variable("localhost:8001") == ""


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "0.0.0.0", "ipv4:127.0.0.1", "a.localhost"]
)
def test_loopback(host):
    assert is_loopback(f"{host}:8001")


@pytest.mark.parametrize("host", ["gpu", "10.0.0.1", "[fe80::1]", "localhost.example", "127.0.0.1.example"])
def test_no_loopback(host):
    assert not is_loopback(f"{host}:8001")
