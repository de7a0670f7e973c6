"""The client loses no answer if the network to one of two servers is slow, cut, lossy or leads nowhere."""

import importlib
import threading
import time
from pathlib import Path

import pytest
from rcnn_client import Detector, _endpoints

# These tests compare times, and other tests may keep the processors busy.
pytestmark = pytest.mark.flaky(reruns=2)

CHAOS = Path(__file__).resolve().parents[1] / "chaos"


@pytest.fixture
def relay(server, monkeypatch):
    """The network to `server`. After one second the client probes a hanging server again."""
    monkeypatch.setattr(_endpoints, "HUNG_COOL_DOWN_S", 1.0)
    monkeypatch.syspath_prepend(CHAOS)
    relay = importlib.import_module("network_relay").Relay(server.url)
    yield relay
    relay.close()


def ask_for_all(detector, png, seconds=1.0):
    """Sends eight pictures at once, repeatedly, and checks that all answers are right."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answers = detector.detect_batch([png(label) for label in range(1, 9)], in_flight=8)
        assert [found.labels[0] for found in answers] == list(range(1, 9))


@pytest.mark.parametrize(
    "changes",
    [
        {"bytes_per_s": 50_000},
        {"delay_s": 0.02, "loss": 0.05, "reordered": 0.2},
        {"loss": 1.0},
        {"takes": False},
    ],
    ids=str,
)
def test_nothing_is_lost_and_the_server_gets_its_turns_again(changes, server, other_server, relay, png):
    if "loss" in changes and not relay.has_packets:
        pytest.skip(relay.why_no_packets)
    with Detector([relay.url, other_server.url], timeout_s=8) as detector:
        ask_for_all(detector, png, 0.1)
        with relay.being(**changes):
            ask_for_all(detector, png)
        assert_gets_its_turns(detector, server, png)


def test_connections_that_are_cut_again_and_again(server, other_server, relay, png):
    over = threading.Event()

    def cut():
        while not over.wait(0.1):
            relay.cut()

    with Detector([relay.url, other_server.url], timeout_s=8) as detector:
        thread = threading.Thread(target=cut)
        thread.start()
        ask_for_all(detector, png)
        over.set()
        thread.join()
        assert_gets_its_turns(detector, server, png)


def test_connections_that_lead_nowhere(server, other_server, relay, png):
    with Detector([relay.url, other_server.url], timeout_s=8) as detector:
        ask_for_all(detector, png, 0.1)
        with relay.being(connects=False):
            relay.cut()
            ask_for_all(detector, png)
        assert_gets_its_turns(detector, server, png)


def assert_gets_its_turns(detector, server, png):
    """Checks that the client uses the server again, now that the network works again."""
    before = len(server.requests)
    began = time.monotonic()
    while len(server.requests) < before + 20:
        assert time.monotonic() - began < 15
        ask_for_all(detector, png, 0.1)
