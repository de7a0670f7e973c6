"""Where the pictures of Label Studio's tasks may come from, and how they are fetched."""

import asyncio
import base64
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rcnn_client import InvalidImageError, InvalidParameterError
from rcnn_client.ui.label_studio import pictures
from rcnn_client.ui.label_studio.pictures import NO_SOURCES, Pictures, read_sources
from yarl import URL

PERSONAL = "head.body.signature"


class Host(ThreadingHTTPServer):
    """An HTTP file server; `requests` holds the path and the Authorization header of each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"http://{self.name}"
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []

    def handle_error(self, request, client_address):
        """Print nothing if a client closes its connection early, for example because it has read enough."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, self.headers["Authorization"]))
        if self.path in self.server.redirects:
            self.answer(302, b"", Location=self.server.redirects[self.path])
        elif self.path in self.server.files:
            self.answer(200, self.server.files[self.path])
        elif self.path == "/slow":
            time.sleep(2)
        else:
            self.answer(404, b"")

    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, None))
        status, body = {
            PERSONAL: (200, b'{"access": "short-lived"}'),
            "no.json.object": (200, b"[]"),
            "no.json.here": (200, b"<html>"),
        }.get(sent["refresh"], (401, b""))
        self.answer(status, body, Content_Type="application/json")

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Print nothing."""


@pytest.fixture
def hosts():
    """Two servers."""
    with contextlib.ExitStack() as stack:
        pair = [stack.enter_context(Host()) for _ in range(2)]
        for host in pair:
            threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(host.shutdown)
        yield pair


def fetch(sources, *places, max_bytes=1000, timeout_s=5.0):
    """Fetches the pictures at these places, one after another, for task number 7; returns the last."""

    async def run():
        async with Pictures(sources, max_bytes=max_bytes, timeout_s=timeout_s) as opened:
            return [await opened.fetch(place, 7) for place in places][-1]

    return asyncio.run(run())


def refusal(sources, place, **limits):
    with pytest.raises(InvalidImageError) as caught:
        fetch(sources, place, **limits)
    return str(caught.value)


def test_uploads_come_from_label_studio_with_its_token(hosts):
    host, _ = hosts
    host.files["/sub/data/upload/1/a.jpg"] = b"a picture"
    legacy = read_sources(f"{host.url}/sub/", "legacy", [])
    assert fetch(legacy, "/data/upload/1/a.jpg") == b"a picture"
    assert fetch(legacy, f"{host.url}/sub/data/upload/1/a.jpg") == b"a picture"
    assert host.requests == [("/sub/data/upload/1/a.jpg", "Token legacy")] * 2


def test_a_personal_token_is_exchanged_once_a_minute(hosts, monkeypatch):
    host, _ = hosts
    host.files["/data/upload/1/a.jpg"] = b"a picture"
    personal = read_sources(host.url, PERSONAL, [])
    assert fetch(personal, "/data/upload/1/a.jpg", "/data/upload/1/a.jpg") == b"a picture"
    got = ("/data/upload/1/a.jpg", "Bearer short-lived")
    assert host.requests == [("/api/token/refresh", None), got, got]
    host.requests.clear()
    monkeypatch.setattr(pictures, "LOGIN_S", 0.0)  # every access token is too old
    fetch(personal, "/data/upload/1/a.jpg", "/data/upload/1/a.jpg")
    assert host.requests == [("/api/token/refresh", None), got] * 2
    for token, message in {
        "not.the.one": "answers 401 Unauthorized to the token in --label-studio-token-file",
        "no.json.object": "answers 200 OK to the token",
        "no.json.here": "cannot be fetched: ",
    }.items():
        assert message in refusal(read_sources(host.url, token, []), "/data/upload/1/a.jpg")


def test_cloud_storage_is_resolved_by_label_studio(hosts):
    host, bucket = hosts
    place = "s3://bucket/é a.jpg"
    code = base64.urlsafe_b64encode(place.encode()).decode()
    host.redirects[f"/tasks/7/presign/?fileuri={code}"] = f"{bucket.url}/a.jpg?signature=a%2Fb%7E"
    bucket.files["/a.jpg?signature=a%2Fb%7E"] = b"a picture"
    assert fetch(read_sources(host.url, "legacy", [bucket.name]), place) == b"a picture"
    assert bucket.requests == [("/a.jpg?signature=a%2Fb%7E", None)]  # only Label Studio gets the token
    said = refusal(read_sources(host.url, "legacy", []), place)
    assert (
        "signature" not in said
        and f"start rcnn-ui with --picture-host {bucket.name}" in said
        and len(bucket.requests) == 1
    )


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("http://169.254.169.254/latest/meta-data", "start rcnn-ui with --picture-host 169.254.169.254"),
        ("http://localhost:1/", "--picture-host localhost:1"),
        ("http://HOST@evil.example/a.jpg", "--picture-host evil.example"),
        ("http://HOST.evil.example/a.jpg", "is not an address: "),
        ("http://127.0.0.1.evil.example/a.jpg", "--picture-host 127.0.0.1.evil.example"),
        ("http://[::1]:8/", "--picture-host [::1]:8"),
        ("https://HOST/a.jpg", "--picture-host HOST"),
        ("http://evil.example\\@HOST/a.jpg", "is not an address: "),
        ("http://127.0.0.1:99999/", "is not an address: "),
        (
            "file:///etc/passwd",
            "expected an address of http or https, a path of Label Studio, or a data: URI",
        ),
        ("ftp://HOST/a", "expected an address of http or https"),
        ("photo.jpg", "expected an address of http or https"),
        ("s3:bucket", "expected an address of http or https"),
    ],
)
def test_pictures_are_not_fetched_from_other_places(hosts, place, message):
    host, _ = hosts
    said = refusal(read_sources(host.url, "secret", []), place.replace("HOST", host.name))
    assert message.replace("HOST", host.name) in said
    assert not host.requests


def test_a_path_that_begins_with_two_slashes_goes_to_label_studio(hosts):
    host, _ = hosts
    assert "404" in refusal(read_sources(host.url, "secret", []), "//evil.example/a.jpg")
    assert host.requests == [("/evil.example/a.jpg", "Token secret")]  # http.server drops the second slash


def test_redirects_are_checked_and_end(hosts):
    host, other = hosts
    host.redirects |= {"/away": f"{other.url}/a", "/loop": "/loop", "/here": "a.jpg", "/bad": "http://[x/"}
    host.files["/a.jpg"] = b"a picture"
    sources = read_sources(None, "", [host.name])
    assert fetch(sources, f"{host.url}/here") == b"a picture"
    assert "pictures are not fetched from there" in refusal(sources, f"{host.url}/away")
    assert not other.requests
    assert "more than 5 redirects" in refusal(sources, f"{host.url}/loop")
    assert "cannot be fetched" in refusal(sources, f"{host.url}/bad")


def test_what_is_too_large_or_slow_or_not_there(hosts):
    host, _ = hosts
    host.files["/large"] = bytes(2**20 + 1)
    sources = read_sources(host.url, "", [])
    assert "too large, expected at most 1 MiB" in refusal(sources, "/large", max_bytes=2**20)
    assert "cannot be fetched: no answer within 0.3 s" in refusal(sources, "/slow", timeout_s=0.3)
    assert "404 Not Found; --label-studio-token-file must contain the token" in refusal(sources, "/nothing")
    gone = read_sources("http://127.0.0.1:1", "", [])
    assert "cannot be fetched: Cannot connect to host" in refusal(gone, "/a.jpg")


def test_data_uris():
    png = base64.b64encode(b"a picture")
    for uri in (
        f"data:image/png;base64,{png.decode()}",
        f"DATA:;BASE64,{png.decode().replace('=', '%3D')}",
        "data:image/png,a%20picture",
    ):
        assert fetch(NO_SOURCES, uri) == b"a picture"
    large = "data:;base64," + base64.b64encode(bytes(2**20 + 1)).decode()
    assert "the picture is too large" in refusal(NO_SOURCES, large, max_bytes=2**20)
    assert "is not a data: URI, expected data:image/png;base64,..." in refusal(NO_SOURCES, "data:image/png")
    for uri in ("data:;base64,abcde", "data:,\ud800"):
        assert "it cannot be read" in refusal(NO_SOURCES, uri)


@pytest.mark.parametrize("place", [None, "", 7, ["/a.jpg", "/b.jpg"], {"url": "/a.jpg"}])
def test_what_is_no_address(place):
    assert refusal(NO_SOURCES, place).endswith("expected an address or a data: URI")


def test_without_label_studio_its_pictures_cannot_be_fetched():
    for place in ("/data/upload/1/a.jpg", "gs://bucket/a.jpg"):
        assert "start rcnn-ui with --label-studio and its address" in refusal(NO_SOURCES, place)


def test_a_host_without_a_port_is_that_of_the_scheme():
    sources = read_sources(None, "", ["Pictures.example", "other.example:8443", "[::1]:81"])
    allowed = {
        "http://pictures.example/a": True,
        "https://pictures.example:443/a": True,
        "http://pictures.example:81/a": False,
        "https://other.example:8443/a": True,
        "https://other.example/a": False,
        "http://[::1]:81/a": True,
    }
    for place, is_allowed in allowed.items():
        assert sources.allow(URL(place)) is is_allowed


@pytest.mark.parametrize(
    ("label_studio", "token", "hosts", "message"),
    [
        ("localhost:8081", "", [], "--label-studio is 'localhost:8081', expected an address such as http://"),
        ("", "", [], "--label-studio is '', expected"),
        ("http://", "", [], "expected an address such as http://localhost:8080"),
        (None, "secret", [], "--label-studio-token-file is given without --label-studio"),
        (None, "", ["http://a.example"], "--picture-host is 'http://a.example', expected HOST or HOST:PORT"),
        (None, "", ["a.example:port"], "expected HOST or HOST:PORT"),
        (None, "", ["user@a.example"], "expected HOST or HOST:PORT"),
        (None, "", [""], "expected HOST or HOST:PORT"),
    ],
)
def test_sources_that_cannot_be_read(label_studio, token, hosts, message):
    with pytest.raises(InvalidParameterError) as caught:
        read_sources(label_studio, token, hosts)
    assert message in str(caught.value)
