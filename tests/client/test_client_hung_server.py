"""A server that hangs delays calls only a little while another server works; one with a full queue is still used."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as async_triton
from rcnn_client import (
    DeadlineExceededError,
    Detector,
    DetectorClosedError,
    ServerUnavailableError,
    _connection,
    _endpoints,
    aio,
)

# These tests compare times, and other tests may keep the processors busy.
pytestmark = pytest.mark.flaky(reruns=2)

FULL = (grpc.StatusCode.UNAVAILABLE, "in ensemble 'faster_rcnn', Exceeds maximum queue size")


class AsyncDetector:
    """`aio.Detector` with blocking calls."""

    def __init__(self, *args, **kwargs):
        self._loop = asyncio.new_event_loop()
        self._detector = aio.Detector(*args, **kwargs)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._loop.run_until_complete(self._detector.close())
        self._loop.close()

    def __getattr__(self, name):
        return lambda *args, **kwargs: self._loop.run_until_complete(
            getattr(self._detector, name)(*args, **kwargs)
        )


each_detector = pytest.mark.parametrize("detector_class", [Detector, AsyncDetector])


def timed(function, *args, **kwargs):
    """What the function returns, and how many seconds it took."""
    began = time.monotonic()
    return function(*args, **kwargs), time.monotonic() - began


@pytest.fixture
def probes(monkeypatch):
    """A list that gets an entry for each probe."""
    sent = []
    for client_class in (triton.InferenceServerClient, async_triton.InferenceServerClient):

        def count(*args, probe=client_class.is_server_live, **kwargs):
            sent.append(1)
            return probe(*args, **kwargs)

        monkeypatch.setattr(client_class, "is_server_live", count)
    return sent


@each_detector
def test_one_that_hangs_costs_two_seconds_once(
    detector_class, server, other_server, path_to_server, png, monkeypatch
):
    monkeypatch.setattr(_endpoints, "HUNG_COOL_DOWN_S", 2.0)
    with detector_class([path_to_server.url, other_server.url]) as detector:
        detector.detect(png(1)), detector.detect(png(1))  # both are connected
        path_to_server.freeze()
        answers, took_s = timed(detector.detect_batch, [png(label) for label in range(1, 31)], in_flight=1)
        assert [found.labels[0] for found in answers] == list(range(1, 31))
        assert 1.4 < took_s < 2  # a silence of 0.5 s, and two probes of 0.5 s
        answers, took_s = timed(detector.detect_batch, [png(1)] * 20, in_flight=1)
        assert len(answers) == 20 and took_s < 1
        path_to_server.thaw()
        time.sleep(2)
        before = len(server.requests)
        detector.detect_batch([png(1)] * 20, in_flight=1)
        assert len(server.requests) - before == 10


@each_detector
def test_calls_that_wait_for_one_that_hangs_probe_it_once(
    detector_class, server, other_server, path_to_server, png, probes
):
    with detector_class([path_to_server.url, other_server.url]) as detector:
        detector.detect_batch([png(1)] * 8)
        path_to_server.freeze()
        answers, took_s = timed(detector.detect_batch, [png(2)] * 200, in_flight=16)
    assert all(found.labels[0] == 2 for found in answers) and took_s < 3
    assert len(probes) == 2  # one on its connection, and one on a new connection


def test_threads_wait_for_one_that_hangs_less_than_two_seconds(server, other_server, path_to_server, png):
    with Detector([path_to_server.url, other_server.url]) as detector, ThreadPoolExecutor(16) as pool:
        detector.detect_batch([png(1)] * 8)
        path_to_server.freeze()
        took = list(pool.map(lambda label: timed(detector.detect, png(label)), [2] * 200))
    assert all(found.labels[0] == 2 for found, _ in took) and max(took_s for _, took_s in took) < 2


@each_detector
def test_one_that_hangs_before_it_is_connected(detector_class, server, other_server, path_to_server, png):
    path_to_server.freeze()
    with detector_class([path_to_server.url, other_server.url], timeout_s=2) as detector:
        answers, took_s = timed(detector.detect_batch, [png(3)] * 10, in_flight=1)
        assert len(answers) == 10 and took_s < 2
    with detector_class([path_to_server.url, other_server.url]) as detector:
        info, took_s = timed(detector.info)
        assert info.model == "faster_rcnn" and took_s < 2


def test_one_that_hangs_before_it_opens_shared_memory(server, other_server, path_to_server):
    server.add_pixels_model(), other_server.add_pixels_model()
    urls = [other_server.url, path_to_server.url]
    with Detector(urls, transport="shm") as detector:
        detector.is_ready()
        path_to_server.freeze()
        answers, took_s = timed(detector.detect_batch, [np.full((20, 10, 3), 4, np.uint8)] * 10, in_flight=1)
        assert [found.labels[0] for found in answers] == [4] * 10 and took_s < 2
        path_to_server.thaw()


def test_two_that_hang_leave_the_third(server, other_server, path_to_server, png):
    path_to_server.freeze()
    with Detector([path_to_server.url, path_to_server.url, other_server.url]) as detector:
        found, took_s = timed(detector.detect, png(5))
        assert found.labels[0] == 5 and took_s < 4


def test_a_server_is_not_given_up_if_no_other_works(server, path_to_server, png, probes):
    with Detector([path_to_server.url, "127.0.0.1:1"]) as detector:
        detector.detect_batch([png(1)] * 4)
        path_to_server.freeze()
        threading.Timer(2.5, path_to_server.thaw).start()
        assert detector.detect(png(1)).labels[0] == 1
    assert not probes


@each_detector
def test_is_ready_asks_the_others(detector_class, server, other_server, path_to_server):
    with detector_class([path_to_server.url, other_server.url]) as detector:
        assert detector.is_ready()
        path_to_server.freeze()
        ready, took_s = timed(detector.is_ready)
        assert ready and took_s < 2
        ready, took_s = timed(detector.is_ready)
        assert ready and took_s < 0.5  # the server that hangs is asked last
        other_server.ready = False
        ready, took_s = timed(detector.is_ready)
        assert not ready and took_s < 2
        other_server.stop()
        ready, took_s = timed(detector.is_ready, timeout_s=1.5)
        assert not ready and took_s < 2


@each_detector
def test_slow_servers_do_no_work_twice(detector_class, server, other_server, png, probes):
    server.delay_s = other_server.delay_s = lambda label: 2.2
    with detector_class([server.url, other_server.url]) as detector:
        answers = detector.detect_batch([png(label) for label in range(1, 9)], in_flight=8)
    assert [found.labels[0] for found in answers] == list(range(1, 9))
    assert len(server.requests) + len(other_server.requests) == 8
    assert server.num_cancelled == other_server.num_cancelled == 0
    assert 4 <= len(probes) <= 10  # one for each server every half second


def test_a_slow_network_does_not_hang(server, other_server, path_to_server, png):
    with Detector([other_server.url, path_to_server.url]) as detector:
        detector.detect(png(1)), detector.detect(png(1))
        path_to_server.bytes_per_s = 1_000_000
        large = png(1) + bytes(2_500_000)  # a probe on the same connection waits behind this picture
        found, took_s = timed(detector.detect, large)
        assert found.labels[0] == 1 and took_s > 2
    assert len(server.requests) == 2 and len(other_server.requests) == 1


def test_fast_answers_cost_no_probe(server, other_server, png, probes):
    with Detector([server.url, other_server.url]) as detector:
        detector.detect_batch([png(1)] * 300)
    assert not probes and not server.num_probes


def test_closing_ends_a_call_to_one_that_hangs(server, other_server, path_to_server, png):
    detector = Detector([other_server.url, path_to_server.url])
    detector.detect(png(1)), detector.detect(png(1))
    path_to_server.freeze()
    threading.Timer(0.3, detector.close).start()
    began = time.monotonic()
    with pytest.raises(DetectorClosedError):
        detector.detect(png(1))
    assert time.monotonic() - began < 1


def test_a_slow_server_is_probed_and_keeps_its_turns(server, other_server, png):
    server.delay_s = lambda label: 1.5 if label == 9 else 0.0
    with Detector([server.url, other_server.url], timeout_s=4) as detector:
        detector.detect(png(1))  # the model's config comes from `server`, the answer from `other_server`
        assert detector.detect(png(9)).labels[0] == 9  # `server` does not answer within a second
        detector.detect_batch([png(1)] * 20, in_flight=1)
    assert 1 <= server.num_probes <= 3
    assert len(server.requests) >= 10


def test_a_picture_that_takes_long_everywhere_gets_the_rest_of_the_time(server, other_server, png):
    server.delay_s = other_server.delay_s = lambda label: 2.0
    with Detector([server.url, other_server.url], timeout_s=6) as detector:
        assert detector.detect(png(1)).labels[0] == 1
    assert len(server.requests) == len(other_server.requests) == 1


def test_one_server_alone_gets_all_the_time(server, png):
    server.delay_s = lambda label: 1.5
    with Detector(server.url, timeout_s=3) as detector:
        detector.detect(png(1))
        with pytest.raises(DeadlineExceededError):
            detector.detect(png(1), timeout_s=1)
        detector.detect(png(1))
    assert server.num_probes == 0 and len(server.requests) == 3


@each_detector
def test_a_full_queue_is_not_hammered(detector_class, server, png):
    server.status = FULL
    with detector_class(server.url) as detector:
        began = time.monotonic()
        with pytest.raises(ServerUnavailableError, match=r"too many requests waiting.*in_flight"):
            detector.detect(png(1), timeout_s=3)
        assert time.monotonic() - began < 3
    assert 2 <= len(server.requests) <= 4


def test_a_full_queue_gets_the_request_a_little_later(server, png):
    server.status = FULL
    with Detector(server.url) as detector:
        threading.Timer(0.2, setattr, (server, "status", None)).start()
        assert detector.detect(png(1)).labels[0] == 1
    assert len(server.requests) == 2


def test_one_with_a_full_queue_keeps_its_turns_and_the_other_is_asked_at_once(server, other_server, png):
    with Detector([server.url, other_server.url]) as detector:
        detector.detect(png(1)), detector.detect(png(1))
        server.status = FULL
        answers, took_s = timed(detector.detect_batch, [png(1)] * 20, in_flight=1)
    assert len(answers) == 20 and took_s < 2
    assert len(server.requests) >= 10


def test_pings_find_a_dead_connection_and_come_seldom_enough_for_any_server(
    server, path_to_server, png, monkeypatch
):
    arguments = dict(_connection.CHANNEL_ARGS)
    assert arguments["grpc.keepalive_time_ms"] > 300_000  # the shortest that gRPC servers permit by default
    faster = [
        (name, value // 200 if "keepalive" in name or "ping" in name else value)
        for name, value in arguments.items()
    ]
    # gRPC also sends pings to measure the bandwidth; a keepalive ping waits for those and for a minute to pass.
    faster += [("grpc.http2.max_pings_without_data", 0), ("grpc.http2.bdp_probe", 0)]
    monkeypatch.setattr(_connection, "CHANNEL_ARGS", faster)
    with Detector(path_to_server.url, retries=0) as detector:
        detector.detect(png(1))
        path_to_server.freeze()
        began = time.monotonic()
        with pytest.raises(ServerUnavailableError):
            detector.detect(png(1), timeout_s=20)
        assert time.monotonic() - began < 10
