"""Certificates that have expired, belong to another host, or are replaced while a detector is open."""

import subprocess
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc
import pytest
from rcnn_client import CertificateError, Detector, ServerUnavailableError, TLSConfig, _clients

from .conftest import seconds_until_it_answers

# These tests compare times, and other tests may keep the processors busy.
pytestmark = pytest.mark.flaky(reruns=2)

AUTHORITY = """
[ca]
default_ca = own
[own]
database = index
serial = serial
new_certs_dir = .
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
YEAR = timedelta(days=365)
WHILE_REPLACED = (CertificateError, ServerUnavailableError)  # the latter while the server restarts


class Authority:
    """A certificate authority that keeps its files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "ca.cnf").write_text(AUTHORITY)
        (folder / "index").write_text("")
        (folder / "serial").write_text("01")
        self._openssl("req", "-x509", *KEY, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
        self.tls = TLSConfig(folder / "ca.pem")

    def sign(
        self, name: str, begins: timedelta = -YEAR, ends: timedelta = YEAR, of: str = "IP:127.0.0.1"
    ) -> tuple[bytes, bytes]:
        """Write name.key and name.pem, valid between these times from now; returns the contents of both."""
        (self.folder / "names").write_text(f"subjectAltName={of}")
        begin, end = (f"{datetime.now(timezone.utc) + limit:%Y%m%d%H%M%SZ}" for limit in (begins, ends))
        request = ["-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", "request"]
        self._openssl("req", *KEY, *request)
        signer = ["-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key", "-extfile", "names"]
        validity = ["-startdate", begin, "-enddate", end]
        self._openssl("ca", "-batch", *signer, *validity, "-in", "request", "-out", f"{name}.pem")
        return (self.folder / f"{name}.key").read_bytes(), (self.folder / f"{name}.pem").read_bytes()

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def restart(server, pair, **options):
    """Stop the server and start it at the same address with this key and certificate."""
    server.stop()
    server.credentials = grpc.ssl_server_credentials([pair], **options)
    server.start()


def test_an_expired_certificate_is_named_and_its_replacement_is_accepted(server, png, authority):
    restart(server, authority.sign("short", ends=timedelta(seconds=2)))
    with Detector(server.url, tls=authority.tls) as detector:
        detector.detect(png(1))
        time.sleep(2)
        assert detector.detect(png(2)).labels[0] == 2  # TLS checks a certificate only when it connects
        restart(server, authority.sign("expired", ends=-timedelta(days=1)))
        with pytest.raises(CertificateError, match=r"the server's certificate.*has expired\. Replace it"):
            detector.detect(png(1))
        restart(server, authority.sign("new"))
        assert seconds_until_it_answers(detector, png(1), WHILE_REPLACED) < 5


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        ({"begins": timedelta(days=1)}, r"is not valid yet\. Check this host's clock"),
        ({"of": "DNS:gpu-1"}, r"is not for '127\.0\.0\.1'\. Call the server by a name in its certificate"),
    ],
)
def test_other_unusable_certificates(server, png, authority, certificate, message):
    restart(server, authority.sign("server", **certificate))
    with Detector(server.url, tls=authority.tls) as detector, pytest.raises(CertificateError, match=message):
        detector.detect(png(1))


def test_a_clients_own_certificate_may_be_replaced(server, png, authority, monkeypatch):
    monkeypatch.setattr(_clients, "REOPEN_S", 0.5)
    root = (authority.folder / "ca.pem").read_bytes()
    restart(server, authority.sign("server"), root_certificates=root, require_client_auth=True)
    own = TLSConfig(*(authority.folder / name for name in ("ca.pem", "own.pem", "own.key")))
    authority.sign("own", ends=-timedelta(days=1))
    with Detector(server.url, tls=own) as detector:
        with pytest.raises(CertificateError, match=r"is tls\.cert still valid"):
            detector.detect(png(1))
        authority.sign("own")
        assert seconds_until_it_answers(detector, png(1), WHILE_REPLACED) < 5
        (authority.folder / "own.pem").write_text("half of a certif")
        restart(server, authority.sign("server"), root_certificates=root, require_client_auth=True)
        assert seconds_until_it_answers(detector, png(1), WHILE_REPLACED) < 5


def test_calls_go_to_the_server_whose_certificate_is_valid(server, other_server, png, authority):
    restart(server, authority.sign("server", ends=-timedelta(days=1)))
    restart(other_server, authority.sign("other"))
    with Detector([server.url, other_server.url], tls=authority.tls) as detector:
        assert detector.is_ready()
        answers = detector.detect_batch([png(label) for label in range(1, 11)], in_flight=2)
    assert [found.labels[0] for found in answers] == list(range(1, 11))
    assert not server.requests
