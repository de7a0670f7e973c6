"""TLS, mutual TLS and header tokens with the real server."""

import asyncio
from pathlib import Path

import pytest
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_client import (
    AccessDeniedError,
    CertificateError,
    DeadlineExceededError,
    Detector,
    InvalidParameterError,
    ServerUnavailableError,
    TLSConfig,
    aio,
)

pytestmark = pytest.mark.xdist_group("client")

PICTURE = next((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))


def tls(folder: Path, root: str = "ca", own: str = "") -> TLSConfig:
    if not own:
        return TLSConfig(folder / f"{root}.pem")
    return TLSConfig(folder / f"{root}.pem", folder / f"{own}.pem", folder / f"{own}.key")


def test_tls_and_header_tokens(digits_repository: Path, certificates: Path) -> None:
    flags = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={certificates}/server.pem",
        f"--grpc-server-key={certificates}/server.key",
        "--grpc-restricted-protocol=inference,model-config:token=secret",
    ]
    with running_server(digits_repository, ["digits"], flags=flags) as server:
        port = server.grpc_url.rpartition(":")[2]
        headers = {"triton-grpc-protocol-token": "secret"}
        for url in (server.grpc_url, f"localhost:{port}"):
            with Detector(url, "digits", tls=tls(certificates), headers=headers) as detector:
                assert len(detector.detect(PICTURE)) > 0
                with pytest.raises(DeadlineExceededError):
                    detector.detect(PICTURE, timeout_s=0.005)
        wrong = {"triton-grpc-protocol-token": "guess"}
        for given in (None, wrong):
            with (
                Detector(server.grpc_url, "digits", tls=tls(certificates), headers=given) as detector,
                pytest.raises(AccessDeniedError, match="expecting header 'triton-grpc-protocol-token'"),
            ):
                detector.detect(PICTURE)
        for settings in (tls(certificates, "other"), TLSConfig()):
            with (
                Detector(server.grpc_url, "digits", tls=settings, headers=headers) as detector,
                pytest.raises(CertificateError, match="CERTIFICATE_VERIFY_FAILED"),
            ):
                detector.detect(PICTURE)
        with (
            Detector(server.grpc_url, "digits", headers=headers) as detector,
            pytest.raises(ServerUnavailableError, match="Does it expect TLS"),
        ):
            detector.detect(PICTURE)

        async def run() -> int:
            settings = tls(certificates)
            async with aio.Detector(server.grpc_url, "digits", tls=settings, headers=headers) as detector:
                return len(await detector.detect(PICTURE))

        assert asyncio.run(run()) > 0


def test_mutual_tls(digits_repository: Path, certificates: Path) -> None:
    flags = [
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={certificates}/server.pem",
        f"--grpc-server-key={certificates}/server.key",
        f"--grpc-root-cert={certificates}/ca.pem",
    ]
    with running_server(digits_repository, ["digits"], flags=flags) as server:
        with Detector(server.grpc_url, "digits", tls=tls(certificates, own="client")) as detector:
            assert len(detector.detect(PICTURE)) > 0
        for own in ("", "stranger"):
            with (
                Detector(server.grpc_url, "digits", tls=tls(certificates, own=own)) as detector,
                pytest.raises(CertificateError, match=r"does it trust tls\.cert\?"),
            ):
                detector.detect(PICTURE)


def test_a_key_of_another_certificate(certificates: Path) -> None:
    pair = TLSConfig(certificates / "ca.pem", certificates / "client.pem", certificates / "server.key")
    with pytest.raises(InvalidParameterError, match=r"MISMATCH.*the certificate's own private key"):
        Detector(tls=pair)


def test_tls_to_a_server_without_it(both_ensembles: RunningServer) -> None:
    with (
        Detector(both_ensembles.grpc_url, "digits", tls=TLSConfig()) as detector,
        pytest.raises(CertificateError, match="does the server use TLS"),
    ):
        detector.detect(PICTURE)
