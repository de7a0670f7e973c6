"""nginx with the shipped configuration, in front of two real servers."""

import subprocess
import sys
from pathlib import Path

import compose
import pytest
import yaml

BALANCER = Path(__file__).resolve().parents[1] / "benchmarks" / "balancer.py"


@pytest.mark.xdist_group("deploy")
def test_the_load_is_shared_and_a_killed_server_loses_nothing(digits_repository: Path) -> None:
    command = [sys.executable, BALANCER, digits_repository, "--requests", "80"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "80 of 80 requests answered" in result.stdout and ", 0 of them wrongly" in result.stdout


def test_its_composition(deploy: Path, versions: dict[str, str]) -> None:
    program = Path(compose.__file__).with_name("docker-compose")
    files = ["--env-file", deploy / "docker" / "versions.env", "-f", deploy / "nginx" / "compose.yaml"]
    result = subprocess.run([program, *files, "config"], capture_output=True, text=True, check=True)
    service = yaml.safe_load(result.stdout)["services"]["nginx"]
    assert service["image"].endswith(f"nginx-unprivileged:{versions['NGINX_VERSION']}")
    assert all(Path(mount["source"]).is_file() for mount in service["volumes"])
