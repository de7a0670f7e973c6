"""Host names that get another address, several addresses or no address while a detector is open."""

import time

import pytest
from rcnn_client import Detector, RcnnError, ServerUnavailableError, _clients

from .conftest import FakeTriton, seconds_until_it_answers
from .name_server import NameServer

# These tests compare times, and other tests may keep the processors busy.
pytestmark = pytest.mark.flaky(reruns=2)

A, B, NOBODY = "127.0.0.2", "127.0.0.3", "127.0.0.4"


@pytest.fixture
def names():
    server = NameServer()
    yield server
    server.close()


@pytest.fixture
def hosts(server):
    """A server at the address A, and one at B; both have the port of `server`."""
    found = {}
    for address in (A, B):
        found[address] = FakeTriton()
        found[address].url = f"{address}:{server.url.rpartition(':')[2]}"
        found[address].start()
    yield found
    for host in found.values():
        host.stop()


@pytest.fixture
def detector(server, names, hosts):
    """A detector whose server has the host name `gpu`."""
    with Detector(server.url, timeout_s=2) as detector:
        detector._connection.urls[0] = names.url(f"gpu:{server.url.rpartition(':')[2]}")
        yield detector


def test_a_name_that_moves_to_another_server_is_followed(detector, names, hosts, png):
    names.addresses["gpu"] = [A]
    detector.detect(png(1))
    names.addresses["gpu"] = [B]
    assert detector.detect(png(1)) and not hosts[B].requests  # a connection that works is kept
    hosts[A].stop()
    assert seconds_until_it_answers(detector, png(1)) < 4
    assert len(hosts[B].requests) == 1
    assert names.num_queries < 10


def test_a_name_that_moves_while_its_server_hangs_is_followed(detector, names, hosts, png, monkeypatch):
    monkeypatch.setattr(_clients, "REOPEN_S", 0.5)
    names.addresses["gpu"] = [A]
    detector.detect(png(1))
    hosts[A].delay_s = lambda label: 5
    names.addresses["gpu"] = [B]
    assert seconds_until_it_answers(detector, png(1)) < 4


def test_a_dead_address_among_others_loses_no_answer(detector, names, hosts, png):
    names.addresses["gpu"] = [NOBODY, A, B]
    answers = detector.detect_batch([png(label) for label in range(1, 21)], in_flight=2)
    assert [found.labels[0] for found in answers] == list(range(1, 21))
    hosts[A].stop()
    assert len(detector.detect_batch([png(1)] * 20, in_flight=2)) == 20


@pytest.mark.parametrize("mute", [False, True], ids=["it does not exist", "nobody answers"])
def test_a_name_that_is_not_resolved_for_a_while(detector, names, png, mute, monkeypatch):
    monkeypatch.setattr(_clients, "REOPEN_S", 0.5)
    names.mute = mute
    began = time.monotonic()
    while time.monotonic() - began < 3:  # gRPC itself tries again at growing intervals
        with pytest.raises(RcnnError):
            detector.detect(png(1), timeout_s=1)
    assert not detector.is_ready(timeout_s=1)
    names.addresses["gpu"], names.mute = [A], False
    assert seconds_until_it_answers(detector, png(1)) < 2


def test_a_name_that_is_lost_while_its_server_works(detector, names, png):
    names.addresses["gpu"] = [A]
    detector.detect(png(1))
    names.addresses.clear()
    assert len(detector.detect_batch([png(1)] * 10)) == 10


def test_a_name_that_does_not_exist_is_reported(detector, png):
    with pytest.raises(ServerUnavailableError, match=r"name 'gpu' cannot be resolved: Domain name not found"):
        detector.detect(png(1))
