"""The flags of the production values on the real server: TLS with client certificates, the token, the locked APIs."""

import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import helm_python as helm
import pytest
import yaml
from rcnn_backend.server.cli import parse_arguments, read_access
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_client import AccessDeniedError, Detector, RcnnError, TLSConfig

pytestmark = pytest.mark.xdist_group("deploy")

PICTURE = next((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The secret's files: a self-signed certificate, which is also the client's, and the token."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run(
        [*command, "-keyout", "tls.key", "-out", "tls.crt"], cwd=folder, check=True, capture_output=True
    )
    shutil.copy(folder / "tls.crt", folder / "ca.crt")
    (folder / "token").write_text("secret\n")
    return folder


@pytest.fixture(scope="module")
def server(deploy: Path, secret: Path, digits_repository: Path) -> Iterator[RunningServer]:
    """The sample detector, served with the options of the chart."""
    values = yaml.safe_load((deploy / "helm" / "values" / "gpu-production.yaml").read_text())
    with helm.Chart.load(deploy / "helm" / "rcnn-triton") as chart:
        files = chart.render(values, name="detect", namespace="vision")
    deployment = yaml.safe_load(files["rcnn-triton/templates/deployment.yaml"])
    args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[0] == "--images-in-flight=64" and args[-2:] == ["--models", "my_detector"]
    mounted = [arg.replace("/tls/", f"{secret}/").replace("/auth/", f"{secret}/") for arg in args[:-2]]
    options, flags = parse_arguments(mounted)
    with running_server(digits_repository, ["digits"], flags=flags, access=read_access(options)) as running:
        yield running


def test_callers_show_a_certificate_and_the_token(server: RunningServer, secret: Path) -> None:
    ca, own = secret / "ca.crt", (secret / "tls.crt", secret / "tls.key")
    headers = {"triton-grpc-protocol-token": "secret"}
    with Detector(server.grpc_url, "digits", tls=TLSConfig(ca, *own), headers=headers) as detector:
        assert len(detector.detect(PICTURE)) > 0
    with (
        Detector(server.grpc_url, "digits", tls=TLSConfig(ca, *own)) as detector,
        pytest.raises(AccessDeniedError, match="triton-grpc-protocol-token"),
    ):
        detector.detect(PICTURE)
    with (
        Detector(server.grpc_url, "digits", tls=TLSConfig(ca), headers=headers, retries=0) as detector,
        pytest.raises(RcnnError),
    ):
        detector.detect(PICTURE)


def test_http_answers_health_alone(server: RunningServer) -> None:
    for path in ("v2/health/ready", "v2/health/live"):
        assert urllib.request.urlopen(f"http://{server.urls['http']}/{path}").status == 200
    for path in ("v2", "v2/models/digits/config", "v2/models/digits/stats", "v2/systemsharedmemory/status"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://{server.urls['http']}/{path}")
