"""A network before one of two servers that is slow, cut, lossy or leads nowhere costs the client no answer."""

import importlib
import threading
import time
from pathlib import Path

import pytest
from rcnn_client import Detector, _endpoints

# Seconds are compared, and other tests may take the processors meanwhile.
pytestmark = pytest.mark.flaky(reruns=2)

CHAOS = Path(__file__).resolve().parents[1] / "chaos"


@pytest.fixture
def relay(server, monkeypatch):
    """The network before `server`; one that hangs is probed again after a second."""
    monkeypatch.setattr(_endpoints, "HUNG_COOL_DOWN_S", 1.0)
    monkeypatch.syspath_prepend(CHAOS)
    relay = importlib.import_module("network_relay").Relay(server.url)
    yield relay
    relay.close()


def ask_for_all(detector, png, seconds=1.0):
    """Eight pictures at once, again and again; all answers are right."""
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
    """The network is well again: so is the server, for this client."""
    before = len(server.requests)
    began = time.monotonic()
    while len(server.requests) < before + 20:
        assert time.monotonic() - began < 15
        ask_for_all(detector, png, 0.1)
