"""Who may use rcnn-ui, what its page may do, and how the command starts and ends."""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from rcnn_client.ui import cli
from rcnn_client.ui.openapi import describe
from rcnn_client.ui.pages import FOLDER

from .ui_client import ask

SECRETS = [
    ("GET", "/models"),
    ("GET", "/models/faster_rcnn"),
    ("POST", "/detect"),
    ("POST", "/picture"),
    ("GET", "/label-studio/faster_rcnn/health"),
    ("POST", "/label-studio/faster_rcnn/predict"),
]


def basic(user, password):
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def send(url, method, path, headers, **settings):
    """Status, headers and body of the answer to a request."""

    async def use(client):
        async with client.request(method, path, headers=headers) as response:
            return response.status, response.headers, await response.text()

    return ask(url, use, **settings)


@pytest.mark.parametrize(
    "host", ["localhost:8080", "LOCALHOST", "127.0.0.1:1", "127.3.2.1", "[::1]:8080", "[::1]"]
)
def test_names_of_this_machine(server, host):
    assert send(server.url, "GET", "/models", {"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example", "0.0.0.0", "10.0.0.1", "[", ""],
)
def test_another_host_name_is_refused(server, host):
    for path in ("/", "/models"):
        status, _, body = send(server.url, "GET", path, {"Host": host})
        assert status == 403 and "expected localhost or 127.0.0.1" in body


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8080", 200),
        ("http://localhost:8081", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("token", ["", "secret"])
def test_pages_of_other_sites_are_refused(server, origin, status, token):
    headers = {"Host": "localhost:8080", "Origin": origin, "Authorization": f"Bearer {token}"}
    got, answered, _ = send(server.url, "GET", "/models", headers, token=token)
    assert got == status
    assert not [name for name in answered if name.lower().startswith("access-control-")]


@pytest.mark.parametrize(
    "given",
    [
        *(None, "Bearer", "Bearer ", "Bearer secre", "Bearer secret2", "secret", "Bearer sécret"),
        *("Basic", "Basic secret", "Basic ???", "Basic sécret", basic("secret", ""), basic("a", "secret2")),
        "Digest secret",
    ],
)
@pytest.mark.parametrize(("method", "path"), SECRETS)
def test_a_token_guards_all_but_the_page(server, method, path, given):
    headers = {} if given is None else {"Authorization": given}
    status, answered, body = send(server.url, method, path, headers, token="secret")
    assert (status, answered["WWW-Authenticate"]) == (401, "Bearer")
    assert "the token is missing or wrong" in body and "secret" not in body


def test_with_the_token_any_name_is_fine(server):
    for given in ("Bearer secret", "bearer  secret", basic("any", "secret"), basic("", "secret")):
        headers = {"Host": "detector.example", "Authorization": given}
        assert send(server.url, "GET", "/models", headers, token="secret")[0] == 200
    for path in ("/", "/page/main.js", "/openapi.json"):
        assert send(server.url, "GET", path, {"Host": "detector.example"}, token="secret")[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/page/main.js", "/models", "/nothing", "/page/../app.py", "/page/%2e%2e/app.py"]
)
def test_every_answer_has_the_policy(server, path):
    status, headers, body = send(server.url, "GET", path, {})
    assert status == (404 if "nothing" in path or "app.py" in path else 200), body
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ") and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Server"] == "rcnn-ui"


def test_the_page_needs_nothing_from_elsewhere():
    for path in FOLDER.iterdir():
        text = path.read_text()
        assert not re.search(
            r"(src|href)=\"(?!/page/)|@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text
        ), path
        assert not re.search(r"<style|style=\"|\bon\w+=\"|innerHTML|\beval\(", text), path


def test_every_route_is_described(server):
    async def use(client):
        return {(route.method, route.resource.canonical) for route in client.app.router.routes()}

    described = {
        (method.upper(), path) for path, methods in describe()["paths"].items() for method in methods
    }
    routes = {(method, path) for method, path in ask(server.url, use) if method != "HEAD"}
    pages = {each for each in routes if each[1] in ("/", "/openapi.json") or each[1].startswith("/page/")}
    assert routes - pages == described
    status, _, body = send(server.url, "GET", "/openapi.json", {})
    assert status == 200 and '"openapi": "3.1.0"' in body


def test_what_is_not_there(server):
    status, _, body = send(server.url, "GET", "/detect", {})
    assert (status, body) == (405, '{"error": "/detect takes POST, not GET"}')
    status, _, body = send(server.url, "GET", "/v2/models", {})
    assert status == 404 and "/openapi.json" in body


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "--host 0.0.0.0 opens the page to other hosts, which needs a token"),
        (["--host", "::"], 2, "which needs a token"),
        (["--token-file", "empty"], 2, "--token-file empty contains no token"),
        (["--token-file", "two words"], 2, "--token-file two words contains no token"),
        (
            ["--label-studio", "http://a", "--label-studio-token-file", "empty"],
            2,
            "file empty contains no token",
        ),
        (
            ["--label-studio-token-file", "good"],
            2,
            "--label-studio-token-file is given without --label-studio",
        ),
        (
            ["--label-studio", "a"],
            2,
            "--label-studio is 'a', expected an address such as http://localhost:8080",
        ),
        (["--picture-host", "a/b"], 2, "--picture-host is 'a/b', expected HOST or HOST:PORT"),
        (["--token-file", "missing"], 1, "missing: No such file or directory"),
        (["--url", "localhost"], 2, "url is 'localhost', expected host:port"),
        (["--host", "127.0.0.1", "--port", "PORT"], 1, "the port is taken, choose another with --port"),
        (["--host", "198.51.100.1", "--token-file", "good"], 1, "cannot listen on 198.51.100.1"),
    ],
)
def test_the_command_says_why_it_does_not_start(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content in {"empty": "\n", "two words": "one two", "good": "secret\n"}.items():
        (tmp_path / name).write_text(content)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main([port if each == "PORT" else each for each in arguments]) == code
    said = capsys.readouterr().err
    assert said.startswith("rcnn-ui: ") and message in said and said.count("\n") == 1


def test_the_command_serves_until_it_is_interrupted(server, png):
    server.delay_s = lambda label: 0.6
    command = [sys.executable, "-c", "import sys, rcnn_client.tools as tools; sys.exit(tools.rcnn_ui())"]
    running = subprocess.Popen(
        [*command, "--url", server.url, "--port", "0"], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        address = re.search(r"at (http://127\.0\.0\.1:\d+) \(Ctrl-C stops it\)", running.stderr.readline())[1]
        with urllib.request.urlopen(f"{address}/models", timeout=30) as answer:
            assert answer.read().decode() == f'{{"url": "{server.url}", "models": ["faster_rcnn"]}}'
        request = urllib.request.Request(f"{address}/detect?model=faster_rcnn", png(7))
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(request, timeout=0.3)
        while not server.num_cancelled:  # until the request of the client that timed out is cancelled
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0 and running.stderr.read() == ""
    finally:
        running.kill()
