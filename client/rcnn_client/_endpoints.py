"""Which of several servers gets the next call, and how long to wait before a call is sent again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Collection

COOL_DOWN_S = 1.0
HUNG_COOL_DOWN_S = 20.0
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 2.0
FIRST_FULL_QUEUE_BACKOFF_S, LAST_FULL_QUEUE_BACKOFF_S = 0.5, 8.0


class Endpoints:
    """Takes turns among `count` endpoints, and leaves out those that are down while another is up.

    One that failed is down for a second. One that let a call time out may hang, and a call to a server that
    hangs costs much time. So it must first answer a short probe; if it does not, it is down for 20 seconds and
    is then probed again.

    Safe to share between threads.
    """

    def __init__(self, count: int) -> None:
        self._down_until = [0.0] * count
        self._may_hang = [False] * count
        self._turn = 0
        self._lock = threading.Lock()

    def choose(self, tried: Collection[int] = ()) -> int:
        """The index of the endpoint that gets the next call.

        Endpoints that are up come before those that are down. Among equals, those not in `tried` come first.
        Among those that are down, the one that is up again first is chosen.
        """
        with self._lock:
            count, now = len(self._down_until), time.monotonic()
            turns = [(self._turn + offset) % count for offset in range(count)]

            def order(endpoint: int) -> tuple[bool, bool, float]:
                is_down = self._down_until[endpoint] > now
                return is_down, endpoint in tried, self._down_until[endpoint] if is_down else 0.0

            chosen = min(turns, key=order)
            self._turn = chosen + 1
            if self._may_hang[chosen]:  # other callers stay away while this one probes it
                self._down_until[chosen] = now + COOL_DOWN_S
            return chosen

    def may_hang(self, endpoint: int) -> bool:
        """Whether the endpoint must answer a probe before it gets another call."""
        return self._may_hang[endpoint]

    def failed(self, endpoint: int) -> None:
        """The endpoint was unavailable just now."""
        with self._lock:
            self._down_until[endpoint] = time.monotonic() + COOL_DOWN_S

    def timed_out(self, endpoint: int) -> None:
        """The endpoint did not answer a call in time: it hangs, or it is only slow."""
        with self._lock:
            self._may_hang[endpoint] = True

    def hangs(self, endpoint: int) -> None:
        """The endpoint did not answer a probe."""
        with self._lock:
            self._down_until[endpoint] = time.monotonic() + HUNG_COOL_DOWN_S

    def answered(self, endpoint: int) -> None:
        """The endpoint works."""
        with self._lock:
            self._down_until[endpoint] = 0.0
            self._may_hang[endpoint] = False


def backoff_s(attempt: int) -> float:
    """The wait after failure number `attempt`, from 0: random, below a limit that doubles each time."""
    return random.uniform(0, min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2**attempt))


def full_queue_backoff_s(attempt: int) -> float:
    """The wait where the queues of all servers are full: longer, and at least half of its limit."""
    limit_s = min(LAST_FULL_QUEUE_BACKOFF_S, FIRST_FULL_QUEUE_BACKOFF_S * 2**attempt)
    return random.uniform(limit_s / 2, limit_s)
