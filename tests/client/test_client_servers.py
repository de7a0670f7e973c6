"""Several servers behind one `Detector`: turns, retries, and which errors are never retried."""

import time

import grpc
import numpy as np
import pytest
from rcnn_client import (
    AccessDeniedError,
    CertificateError,
    DeadlineExceededError,
    Detector,
    InvalidImageError,
    InvalidParameterError,
    ModelNotFoundError,
    ServerError,
    ServerUnavailableError,
    TLSConfig,
)
from rcnn_client._endpoints import Endpoints, backoff_s

UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "the model is loading")


def test_servers_take_turns(server, other_server, png):
    with Detector([server.url, other_server.url]) as detector:
        detector.detect_batch([png(label) for label in range(1, 21)])
    assert len(server.requests) + len(other_server.requests) == 20
    assert abs(len(server.requests) - len(other_server.requests)) <= 1


def test_the_addresses_of_one_name_take_turns(server, other_server, png):
    with Detector(f"ipv4:{server.url},{other_server.url}") as detector:
        detector.detect_batch([png(label) for label in range(1, 21)], in_flight=1)
        time.sleep(0.2)  # wait until both are connected
        detector.detect_batch([png(label) for label in range(1, 21)], in_flight=1)
        assert min(len(server.requests), len(other_server.requests)) >= 9
        other_server.stop()
        assert len(detector.detect_batch([png(label) for label in range(1, 21)])) == 20


def test_one_that_is_unavailable_is_left_out_until_it_answers_again(server, other_server, png):
    server.status = UNAVAILABLE
    with Detector([server.url, other_server.url]) as detector:
        answers = detector.detect_batch([png(label) for label in range(1, 31)], in_flight=1)
        assert [found.labels[0] for found in answers] == list(range(1, 31))
        assert len(server.requests) == 1 and len(other_server.requests) == 30
        server.status = None
        time.sleep(1.1)
        detector.detect_batch([png(label) for label in range(1, 21)], in_flight=1)
    assert len(server.requests) == 11


def test_one_that_is_killed_and_started_again_under_load(server, other_server, png):
    server.delay_s = other_server.delay_s = lambda label: 0.02
    labels = [1 + index % 200 for index in range(300)]

    def pictures():
        for index, label in enumerate(labels):
            if index == 100:
                server.stop()
            yield png(label)

    with Detector([server.url, other_server.url]) as detector:
        answers = detector.detect_batch(pictures(), in_flight=8)
        assert [found.labels[0] for found in answers] == labels
        before = len(server.requests)
        assert 20 < before < 80
        server.start()
        time.sleep(2.2)  # gRPC tries to connect again at least every 2 s
        detector.detect_batch([png(label) for label in range(1, 41)], in_flight=8)
    assert len(server.requests) - before >= 15


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'digits' has no available versions"),
        (grpc.StatusCode.INTERNAL, "in ensemble 'digits', Stub process 'digits_proposals_0' is not healthy."),
    ],
)
def test_one_that_is_stopping_or_broken_is_left_out(server, other_server, png, status, said):
    server.status = (status, said)
    with Detector([server.url, other_server.url]) as detector:
        assert [found.labels[0] for found in detector.detect_batch([png(1), png(2), png(3)])] == [1, 2, 3]
    with (
        Detector(server.url, retries=1) as detector,
        pytest.raises(ServerUnavailableError, match=said),
    ):
        detector.detect(png(1))


@pytest.mark.parametrize(
    ("status", "words", "error", "said"),
    [
        (
            grpc.StatusCode.NOT_FOUND,
            "Request for unknown model: 'faster_rcnn' is not found",
            ModelNotFoundError,
            "unknown model",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "Ssl handshake failed: certificate has expired",
            CertificateError,
            "has expired",
        ),
    ],
)
def test_an_error_of_one_is_retried_on_the_others(server, other_server, png, status, words, error, said):
    server.status = (status, words)
    with Detector([server.url, other_server.url]) as detector:
        answers = detector.detect_batch([png(label) for label in range(1, 21)], in_flight=1)
        assert [found.labels[0] for found in answers] == list(range(1, 21))
        assert len(server.requests) == 1 and len(other_server.requests) == 20
        other_server.status = server.status
        server.requests.clear(), other_server.requests.clear()
        with pytest.raises(error, match=said):
            detector.detect(png(1))
        assert len(server.requests) <= 1 and len(other_server.requests) <= 1
        other_server.status = None
        assert detector.detect(png(2)).labels[0] == 2
    with Detector([other_server.url, server.url], retries=0) as detector, pytest.raises(error, match=said):
        detector.detect(png(1))


def test_a_model_that_only_one_of_them_has_loaded(server, other_server, png):
    del server.configs["faster_rcnn"]
    with Detector([server.url, other_server.url]) as detector:
        assert detector.is_ready() and detector.info().model == "faster_rcnn"
        assert detector.detect(png(1)).labels[0] == 1
    with Detector([server.url, other_server.url], "typo") as detector:
        assert not detector.is_ready()
        with pytest.raises(ModelNotFoundError, match="typo"):
            detector.detect(png(1))


def test_a_model_that_takes_pixels_only_on_one_of_them(server, other_server):
    other_server.add_pixels_model()
    array = np.full((20, 10, 3), 4, np.uint8)
    with Detector([server.url, other_server.url]) as detector:
        answers = detector.detect_batch([array] * 10, in_flight=1)
    assert [found.labels[0] for found in answers] == [4] * 10
    assert len(other_server.requests) >= 9


def test_one_that_works_is_found_among_many_that_are_down(server, png):
    urls = [f"127.0.0.1:{port}" for port in range(1, 8)]
    for at in (0, 4, 7):
        with Detector([*urls[:at], server.url, *urls[at:]]) as detector:
            assert detector.detect(png(1)).labels[0] == 1


def test_retries_end(server, png):
    server.status = UNAVAILABLE
    for retries in (0, 3):
        server.requests.clear()
        with (
            Detector(server.url, retries=retries) as detector,
            pytest.raises(ServerUnavailableError, match="the model is loading"),
        ):
            detector.detect(png(1))
        assert len(server.requests) == 1 + retries


def test_retries_end_with_the_deadline(server, png):
    server.status = UNAVAILABLE
    with Detector(server.url, retries=10_000) as detector:
        begin = time.monotonic()
        with pytest.raises(ServerUnavailableError):
            detector.detect(png(1), timeout_s=0.7)
        assert time.monotonic() - begin < 1
        assert 2 < len(server.requests) < 40


def test_what_another_server_would_refuse_too_is_not_sent_again(server, other_server, png):
    with Detector([server.url, other_server.url]) as detector:
        with pytest.raises(InvalidImageError):
            detector.detect(b"no picture")
        assert len(server.requests + other_server.requests) == 1
        for status, words, error in [
            (grpc.StatusCode.INTERNAL, "out of memory", ServerError),
            (
                grpc.StatusCode.UNAVAILABLE,
                "This protocol is restricted, expecting header 'x'",
                AccessDeniedError,
            ),
            (grpc.StatusCode.UNAUTHENTICATED, "token expired", AccessDeniedError),
        ]:
            server.requests.clear(), other_server.requests.clear()
            server.status = other_server.status = (status, words)
            with pytest.raises(error, match=words):
                detector.detect(png(1))
            assert len(server.requests + other_server.requests) == 1


def test_a_request_that_is_too_late_is_not_sent_again(server, other_server, png):
    server.delay_s = other_server.delay_s = lambda label: 1.0
    with Detector([server.url, other_server.url]) as detector:
        with pytest.raises(DeadlineExceededError, match=r"within 0\.3 s"):
            detector.detect(png(1), timeout_s=0.3)
        assert len(server.requests + other_server.requests) == 1


def test_is_ready(server, png):
    with Detector(["127.0.0.1:1", server.url]) as detector:
        assert detector.is_ready()
        server.ready = False
        assert not detector.is_ready()
        server.stop()
        assert not detector.is_ready(timeout_s=5)
        server.start()


def test_turns():
    endpoints = Endpoints(3)
    assert [endpoints.choose() for _ in range(4)] == [0, 1, 2, 0]
    endpoints.failed(1)
    assert [endpoints.choose() for _ in range(3)] == [2, 0, 2]
    endpoints.failed(0)
    endpoints.failed(2)
    assert endpoints.choose() == 1  # all failed, so the one that failed first is chosen
    endpoints.answered(2)
    assert [endpoints.choose() for _ in range(2)] == [2, 2]


def test_waits_double_up_to_a_limit():
    for attempt, limit_s in [(0, 0.05), (1, 0.1), (4, 0.8), (6, 2.0), (60, 2.0)]:
        waits = [backoff_s(attempt) for _ in range(300)]
        assert min(waits) >= 0 and 0.9 * limit_s < max(waits) <= limit_s


def test_certificates_are_checked_before_any_call(tmp_path):
    (tmp_path / "empty.pem").touch()
    for tls, reason in [
        (TLSConfig(ca=tmp_path / "none.pem"), "No such file"),
        (TLSConfig(ca=tmp_path / "empty.pem"), "expected PEM files"),
        (TLSConfig(cert="client.pem"), "cert and key belong together"),
    ]:
        with pytest.raises(InvalidParameterError, match=reason):
            Detector(tls=tls)
