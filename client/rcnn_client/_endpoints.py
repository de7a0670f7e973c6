"""Which of several servers gets the next call, and how long to wait before a call is sent again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

COOL_DOWN_S = 1.0
HUNG_COOL_DOWN_S = 20.0
PROBED_AFTER_S = 0.5
PROBE_TIMEOUT_S = 0.5
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 2.0
FIRST_FULL_QUEUE_BACKOFF_S, LAST_FULL_QUEUE_BACKOFF_S = 0.5, 8.0


@dataclass
class _Endpoint:
    """What is known of an endpoint; times are those of `time.monotonic`."""

    works: bool = True  # until it fails
    may_hang: bool = False
    down_until: float = 0.0
    answered_at: float = 0.0
    hung_at: float = 0.0  # when it last failed to answer a probe
    is_probed: bool = False  # by a caller that waits for an answer


class Endpoints:
    """Chooses `count` endpoints in turn, and leaves out those that are down while another is up.

    An endpoint that failed is down for a second. An endpoint may hang if a call to it timed out, and calls to a
    server that hangs take a long time. It must therefore answer a short probe first; if it does not, it is down for
    20 seconds and is then probed again. An endpoint that is silent while a call waits is probed as well.

    Safe to share between threads.
    """

    def __init__(self, count: int) -> None:
        self._all = [_Endpoint() for _ in range(count)]
        self._turn = 0
        self._lock = threading.Lock()

    def choose(self, tried: Collection[int] = ()) -> int:
        """The index of the endpoint that gets the next call.

        Endpoints that are up come before those that are down. Among equals, those not in `tried` come first.
        Among those that are down, the one that is up again first is chosen.
        """
        with self._lock:
            count, now = len(self._all), time.monotonic()
            turns = [(self._turn + offset) % count for offset in range(count)]

            def order(endpoint: int) -> tuple[bool, bool, float]:
                each = self._all[endpoint]
                is_down = each.is_probed or each.down_until > now
                return is_down, endpoint in tried, each.down_until if is_down else 0.0

            chosen = min(turns, key=order)
            self._turn = chosen + 1
            if self._all[chosen].may_hang:  # keep other callers away while this one probes it
                self._all[chosen].down_until = now + 2 * PROBE_TIMEOUT_S + COOL_DOWN_S
            return chosen

    def may_hang(self, endpoint: int) -> bool:
        """Whether the endpoint must answer a probe before it gets another call."""
        return self._all[endpoint].may_hang

    def another_works(self, endpoint: int) -> bool:
        """Whether, as far as is known, a call could go to another endpoint instead."""
        return any(each.works for index, each in enumerate(self._all) if index != endpoint)

    def begin_probe(self, endpoint: int, sent_at: float) -> bool:
        """Whether a caller that has waited since `sent_at` must probe the endpoint now, and then call `end_probe`.

        It must if nothing has been known of the endpoint for half a second. One caller probes at a time, and
        meanwhile new calls go to other endpoints.
        """
        with self._lock:
            each, now = self._all[endpoint], time.monotonic()
            if each.is_probed or now < max(sent_at, each.answered_at, each.hung_at) + PROBED_AFTER_S:
                return False
            each.is_probed = True
            return True

    def end_probe(self, endpoint: int) -> None:
        """The caller that probed the endpoint has its answer, or gave up."""
        with self._lock:
            self._all[endpoint].is_probed = False

    def has_hung_since(self, endpoint: int, sent_at: float) -> bool:
        """Whether the endpoint has failed to answer a probe since `sent_at`, and has not answered anything later."""
        each = self._all[endpoint]
        return each.hung_at > max(sent_at, each.answered_at)

    def failed(self, endpoint: int) -> None:
        """The endpoint was unavailable just now."""
        with self._lock:
            each = self._all[endpoint]
            each.works = False
            each.down_until = time.monotonic() + COOL_DOWN_S

    def timed_out(self, endpoint: int) -> None:
        """The endpoint did not answer a call in time: it hangs or is only slow."""
        with self._lock:
            each = self._all[endpoint]
            each.works, each.may_hang = False, True

    def hangs(self, endpoint: int) -> None:
        """The endpoint did not answer a probe."""
        with self._lock:
            each = self._all[endpoint]
            each.works, each.may_hang = False, True
            each.hung_at = time.monotonic()
            each.down_until = each.hung_at + HUNG_COOL_DOWN_S

    def answered(self, endpoint: int) -> None:
        """The endpoint works."""
        with self._lock:
            self._all[endpoint] = _Endpoint(answered_at=time.monotonic())


def backoff_s(attempt: int) -> float:
    """The wait after failure number `attempt`, from 0: random, below a limit that doubles each time."""
    return random.uniform(0, min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2**attempt))


def full_queue_backoff_s(attempt: int) -> float:
    """The wait if the queues of all servers are full: longer, and at least half of its limit."""
    limit_s = min(LAST_FULL_QUEUE_BACKOFF_S, FIRST_FULL_QUEUE_BACKOFF_S * 2**attempt)
    return random.uniform(limit_s / 2, limit_s)
