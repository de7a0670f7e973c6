"""The image's entry point with the real server, and every metric that the dashboard and the alerts query."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml
from rcnn_client import Detector, InvalidImageError

pytestmark = pytest.mark.xdist_group("deploy")

PICTURES = Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures"
# Metrics that a server without a GPU does not have. The first is from the Python steps, the others are Triton's.
ON_A_GPU = {
    "rcnn_cpu_tensor_bytes_total",
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes",
}


@pytest.fixture(scope="module")
def container(deploy: Path, digits_repository: Path) -> Iterator[dict[str, str]]:
    """Runs entrypoint.sh as the container does, on free ports and with all steps. Yields ``host:port`` by protocol."""
    entrypoint = deploy / "docker" / "entrypoint.sh"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MODEL_REPOSITORY": str(digits_repository),
    }
    ports = [f"--{protocol}-port=0" for protocol in ("http", "grpc", "metrics")]
    process = subprocess.Popen(
        [entrypoint, *ports, "--fused", "off"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    serving = next(line for line in lines if line.startswith("Serving"))
    found = re.findall(r"(http|grpc|metrics) 0\.0\.0\.0:(\d+)", serving)
    yield {protocol: f"127.0.0.1:{port}" for protocol, port in found}
    process.terminate()
    process.stdout.read()
    assert process.wait(30) == 0


@pytest.fixture(scope="module")
def exposed(container: dict[str, str]) -> set[str]:
    """The names of the metrics on /metrics after a detection and a refusal."""
    with Detector(container["grpc"], "digits") as detector:
        assert len(detector.detect(next(PICTURES.glob("*.jpg")))) > 0
        with pytest.raises(InvalidImageError):
            detector.detect(b"no picture")
    with urllib.request.urlopen(f"http://{container['metrics']}/metrics") as page:
        return set(re.findall(r"^(\w+)", page.read().decode(), re.MULTILINE))


def check(expressions: list[str], exposed: set[str]) -> None:
    """Checks that each expression is PromQL and queries only metrics that exist."""
    for expression in expressions:
        filled = expression.replace("$__rate_interval", "1m").replace("$model", "digits")
        promql_parser.parse(filled)
        asked = set(re.findall(r"\b(?:nv|rcnn)_\w+", re.sub(r'"[^"]*"', "", filled)))
        assert asked and asked - exposed <= ON_A_GPU, asked - exposed


def test_the_health_check(deploy: Path, container: dict[str, str]) -> None:
    command = [sys.executable, deploy / "docker" / "healthcheck.py"]
    port = container["http"].rpartition(":")[2]
    proxy = {"http_proxy": "http://127.0.0.1:1"}  # must be ignored for the server in the same container
    assert subprocess.run(command, env={**os.environ, "HTTP_PORT": port, **proxy}).returncode == 0
    closed = subprocess.run(command, env={**os.environ, "HTTP_PORT": "1"}, capture_output=True, text=True)
    assert closed.returncode == 1 and "http://127.0.0.1:1/v2/health/ready: " in closed.stderr


def test_the_dashboard_asks_for_what_there_is(deploy: Path, exposed: set[str]) -> None:
    grafana = deploy / "docker" / "grafana"
    dashboard = json.loads((grafana / "dashboards" / "rcnn.json").read_text())
    sources = yaml.safe_load((grafana / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert {target["datasource"]["uid"] for target in targets} == {sources["datasources"][0]["uid"]}
    check([target["expr"] for target in targets], exposed)
    variable = dashboard["templating"]["list"][0]
    pattern = re.compile(variable["regex"].strip("/"))
    models = ["digits", "digits_pixels", "digits_fused", "digits_rpn", "digits_preprocess"]
    assert [name for name in models if pattern.match(name)] == models[:3]
    assert re.search(r"label_values\((\w+),", variable["query"]["query"]).group(1) in exposed


def test_the_alerts_ask_for_what_there_is(deploy: Path, exposed: set[str]) -> None:
    prometheus = deploy / "docker" / "prometheus"
    config = yaml.safe_load((prometheus / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    composition = yaml.safe_load((deploy / "docker" / "compose.yaml").read_text())
    (alias,) = composition["x-server"]["networks"]["default"]["aliases"]
    assert job["static_configs"] == [{"targets": [f"{alias}:8002"]}]
    rules = yaml.safe_load((prometheus / config["rule_files"][0]).read_text())["groups"][0]["rules"]
    assert all(f'job="{job["job_name"]}"' in rule["expr"] for rule in rules)
    check([rule["expr"] for rule in rules if "up{" not in rule["expr"]], exposed)
