"""Which of several servers gets a call or a probe, and how long an attempt may take."""

import time

import pytest
from rcnn_client import InvalidParameterError, _endpoints
from rcnn_client._deadline import Deadline
from rcnn_client._endpoints import Endpoints, full_queue_backoff_s


def test_turns_with_one_that_may_hang(monkeypatch):
    monkeypatch.setattr(_endpoints, "HUNG_COOL_DOWN_S", 0.2)
    endpoints = Endpoints(2)
    endpoints.timed_out(0)
    assert [endpoints.choose() for _ in range(4)] == [0, 1, 1, 1]  # the first caller probes it
    endpoints.hangs(0)
    assert [endpoints.choose() for _ in range(3)] == [1, 1, 1]
    time.sleep(0.25)
    assert endpoints.choose() == 0 and endpoints.may_hang(0)
    endpoints.answered(0)
    assert not endpoints.may_hang(0)
    assert [endpoints.choose() for _ in range(3)] == [1, 0, 1]
    assert [endpoints.choose(tried={0}) for _ in range(2)] == [1, 1]


def test_one_caller_at_a_time_probes_an_endpoint_that_is_silent(monkeypatch):
    monkeypatch.setattr(_endpoints, "PROBED_AFTER_S", 0.1)
    endpoints = Endpoints(2)
    sent_at = time.monotonic()
    assert not endpoints.begin_probe(0, sent_at)  # it has not been silent for long enough
    time.sleep(0.15)
    assert [endpoints.begin_probe(0, sent_at) for _ in range(3)] == [True, False, False]
    assert [endpoints.choose() for _ in range(3)] == [1, 1, 1]
    endpoints.answered(0), endpoints.end_probe(0)
    assert not endpoints.begin_probe(0, sent_at) and not endpoints.has_hung_since(0, sent_at)
    time.sleep(0.15)
    assert endpoints.begin_probe(0, sent_at)
    endpoints.hangs(0), endpoints.end_probe(0)
    assert not endpoints.begin_probe(0, sent_at) and endpoints.has_hung_since(0, sent_at)
    assert not endpoints.has_hung_since(0, time.monotonic())  # nothing is known about a later call
    assert endpoints.another_works(0) and not endpoints.another_works(1)
    endpoints.failed(1)
    assert not endpoints.another_works(0)


def test_waits_for_a_full_queue_double_up_to_a_limit():
    for attempt, limit_s in [(0, 0.5), (1, 1.0), (3, 4.0), (60, 8.0)]:
        waits = [full_queue_backoff_s(attempt) for _ in range(300)]
        assert limit_s / 2 <= min(waits) < 0.6 * limit_s and 0.9 * limit_s < max(waits) <= limit_s


def test_a_deadline_has_shares():
    assert Deadline(60).share().left_s() == pytest.approx(15, abs=0.1)
    assert Deadline(3).share().left_s() == pytest.approx(1, abs=0.1)
    assert Deadline(0.5).share().left_s() == pytest.approx(0.5, abs=0.1)
    assert Deadline(60).share().timeout_s == 60
    with pytest.raises(InvalidParameterError):
        Deadline(0)
