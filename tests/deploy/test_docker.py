"""The images and the Compose file, as far as they can be checked without a Docker engine."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose as compose_package
import pytest
import yaml

BIN = Path(sys.executable).parent
# Not the package's script, which hides the exit code.
DOCKER_COMPOSE = Path(compose_package.__file__).with_name("docker-compose")
COMPOSE = ["--env-file", "versions.env", "-f", "compose.yaml", "--profile"]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)


def final_stages(dockerfile: str) -> dict[str, str]:
    """The instructions of each stage from which no other stage is built, by its name."""
    stages = {}
    for text in re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[1:]:
        name = text.partition(" AS ")[2].partition("\n")[0]
        stages[name] = text
    return {name: text for name, text in stages.items() if f"--from={name} " not in dockerfile}


def compose(docker: Path, profile: str) -> dict[str, Any]:
    result = run(DOCKER_COMPOSE, *COMPOSE, profile, "config", cwd=docker, GRAFANA_PASSWORD="secret")
    assert (result.returncode, result.stderr) == (0, "")
    config: dict[str, Any] = yaml.safe_load(result.stdout)
    return config


def test_linters_find_nothing(deploy: Path) -> None:
    docker = deploy / "docker"
    for command in ([BIN / "hadolint", "Dockerfile"], [BIN / "shellcheck", "entrypoint.sh"]):
        result = run(*command, cwd=docker)
        assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_final_stages_run_as_nobody_special_and_build_nothing(deploy: Path) -> None:
    stages = final_stages((deploy / "docker" / "Dockerfile").read_text())
    assert set(stages) == {"cpu", "gpu"}
    for text in stages.values():
        instructions = {line.split()[0] for line in text.splitlines() if re.match(r"[A-Z]+ ", line)}
        assert "RUN" not in instructions and "COPY --from=uv" not in text
        assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", text, re.MULTILINE)
        assert {"HEALTHCHECK", "ENTRYPOINT"} < instructions


def test_versions_have_one_home(deploy: Path, versions: dict[str, str]) -> None:
    docker, root = deploy / "docker", deploy.parent
    dockerfile, composition = ((docker / name).read_text() for name in ("Dockerfile", "compose.yaml"))
    arguments = set(re.findall(r"^ARG (\w+)$", dockerfile, re.MULTILINE))
    passed = compose(docker, "gpu")["services"]["server-gpu"]["build"]["args"]
    assert passed == {name: versions[name] for name in arguments}
    images = re.findall(r"(?:FROM|image:) (\S+)", dockerfile + composition)
    assert all("${" in image for image in images)  # versions only in versions.env
    readers = [dockerfile, composition, *(path.read_text() for path in deploy.glob("README.md"))]
    readers += [path.read_text() for path in (Path(__file__).parent).glob("test_*.py")]
    assert [name for name in versions if not any(name in text for text in readers)] == []

    backend = (root / "python_backend" / "pyproject.toml").read_text()
    assert f'"cupy-cuda{versions["CUDA_MAJOR"]}x=={versions["CUPY_VERSION"]}"' in backend
    assert f'version = "{versions["RCNN_VERSION"]}"' in backend
    assert f"uv=={versions['UV_VERSION']}\n" in (root / "requirements-dev.txt").read_text()


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_the_composition_is_valid_and_closed(deploy: Path, profile: str) -> None:
    services = compose(deploy / "docker", profile)["services"]
    assert set(services) == {f"server-{profile}", "prometheus", "grafana"}
    server = services[f"server-{profile}"]
    assert server["read_only"] and server["cap_drop"] == ["ALL"] and server["user"] == "1000:1000"
    assert server["build"]["target"] == profile
    assert ("deploy" in server) == (profile == "gpu")
    assert {port["host_ip"] for service in services.values() for port in service["ports"]} == {"127.0.0.1"}
    mounts = [mount for service in services.values() for mount in service["volumes"]]
    sources = [Path(mount["source"]) for mount in mounts if mount["type"] == "bind"]
    assert len(sources) == 4 and all(source.is_dir() for source in sources)


def test_a_composition_without_its_versions_or_password_is_refused(deploy: Path) -> None:
    docker = deploy / "docker"
    no_password = run(DOCKER_COMPOSE, *COMPOSE, "cpu", "config", cwd=docker)
    assert no_password.returncode != 0 and "choose a password for Grafana's admin" in no_password.stderr
    no_versions = run(
        DOCKER_COMPOSE,
        "-f",
        "compose.yaml",
        "--profile",
        "cpu",
        "config",
        cwd=docker,
        GRAFANA_PASSWORD="x",
    )
    assert no_versions.returncode != 0 and "give --env-file deploy/docker/versions.env" in no_versions.stderr


def test_the_entry_point_says_what_is_missing_and_rebuilds_plans(deploy: Path, tmp_path: Path) -> None:
    entrypoint = deploy / "docker" / "entrypoint.sh"
    models, bin_dir = tmp_path / "models", tmp_path / "bin"
    (models / "digits_rpn" / "1").mkdir(parents=True)
    bin_dir.mkdir()
    recorder = bin_dir / "rcnn-serve"
    recorder.write_text('#!/bin/sh\necho "$@"\n')
    recorder.chmod(0o755)
    environment = {"PATH": f"{bin_dir}:{os.environ['PATH']}", "MODEL_REPOSITORY": str(models)}

    empty = run(entrypoint, cwd=tmp_path, **environment)
    assert empty.returncode == 1 and f"No model in {models}: mount the folder" in empty.stderr
    (models / "digits_rpn" / "config.pbtxt").touch()
    started, metrics = f"{models} --host 0.0.0.0 --ready-timeout-s", "--metrics-config=summary_latencies=true"
    onnx = run(entrypoint, "--models", "a", "--", "--log-verbose=1", cwd=tmp_path, **environment)
    assert onnx.stdout == f"{started} 900 --models a -- --log-verbose=1 {metrics}\n"
    (models / "digits_rpn" / "1" / "model.plan").touch()
    plan = run(entrypoint, cwd=tmp_path, READY_TIMEOUT_S="60", **environment)
    assert plan.stdout == f"{started} 60 --rebuild -- {metrics}\n"
