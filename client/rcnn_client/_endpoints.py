"""Which of several servers gets the next call, and how long to wait before a call is sent again."""

from __future__ import annotations

import random
import threading
import time

COOL_DOWN_S = 1.0
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 2.0


class Endpoints:
    """Takes turns among `count` endpoints; one that failed gets no turn for a second while another is up.

    Safe to share between threads.
    """

    def __init__(self, count: int) -> None:
        self._down_until = [0.0] * count
        self._turn = 0
        self._lock = threading.Lock()

    def choose(self) -> int:
        """The index of the endpoint whose turn it is; where all failed, of the one that failed first."""
        with self._lock:
            count, now = len(self._down_until), time.monotonic()
            turns = [(self._turn + offset) % count for offset in range(count)]
            up = [endpoint for endpoint in turns if self._down_until[endpoint] <= now]
            chosen = up[0] if up else min(turns, key=self._down_until.__getitem__)
            self._turn = chosen + 1
            return chosen

    def failed(self, endpoint: int) -> None:
        """The endpoint was unavailable just now."""
        with self._lock:
            self._down_until[endpoint] = time.monotonic() + COOL_DOWN_S

    def answered(self, endpoint: int) -> None:
        """The endpoint works."""
        with self._lock:
            self._down_until[endpoint] = 0.0


def backoff_s(attempt: int) -> float:
    """The wait after failure number `attempt`, from 0: at random below a limit that doubles each time."""
    return random.uniform(0, min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2**attempt))
