"""Clients that never stop asking, and what became of each request."""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pictures import SCORE_THRESH, is_same
from rcnn_client import Detections, Detector, RcnnError

NUM_CLIENTS = 16
TIMEOUT_S = 10.0
LATE_S = TIMEOUT_S + 2.0  # a request that has not ended by then is lost
RIGHT, WRONG, LOST = "right", "wrong", "lost"


@dataclass(frozen=True)
class Request:
    """``began``, ``ended``: by time.monotonic. ``outcome``: right, wrong, lost, or the class of the error."""

    began: float
    ended: float
    outcome: str
    message: str = ""

    @property
    def is_error(self) -> bool:
        """Whether the client raised, and in time."""
        return self.outcome not in (RIGHT, WRONG, LOST)


class Load:
    """So many threads ask the servers at ``urls`` for pictures, each its own sequence, while the block runs.

    ``requests``: those that have ended, in that order; after the block also those that never did.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        pictures: Sequence[bytes],
        expected: Sequence[Detections],
        num_clients: int = NUM_CLIENTS,
    ) -> None:
        self.requests: list[Request] = []
        self._urls, self._model, self._pictures, self._expected = list(urls), model, pictures, expected
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(client,), daemon=True) for client in range(num_clients)
        ]
        self._began: dict[int, float] = {}  # of each client's request that has not ended
        self._right_since = dict.fromkeys(range(num_clients), float("-inf"))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        until = time.monotonic() + LATE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        now = time.monotonic()
        self.requests += [Request(began, now, LOST) for began in list(self._began.values())]

    def serves_all_since(self, moment: float) -> bool:
        """Whether the last request of every client was answered rightly and began after ``moment``."""
        return min(self._right_since.values()) > moment

    def _ask(self, client: int) -> None:
        turn = client
        with Detector(self._urls, self._model, timeout_s=TIMEOUT_S) as detector:
            while not self._over.is_set():
                index, turn = turn % len(self._pictures), turn + 5
                began = self._began[client] = time.monotonic()
                outcome, message = ask(detector, self._pictures[index], self._expected[index])
                ended = time.monotonic()
                if ended - began > LATE_S:
                    outcome = LOST
                self.requests.append(Request(began, ended, outcome, message))
                del self._began[client]
                self._right_since[client] = began if outcome == RIGHT else float("-inf")


def ask(detector: Detector, picture: bytes, expected: Detections) -> tuple[str, str]:
    """What became of one request, and the error's message. An exception that is not the client's own is wrong, too."""
    try:
        answer = detector.detect(picture, score_thresh=SCORE_THRESH)
    except RcnnError as error:
        return type(error).__name__, str(error)
    except Exception as error:
        return WRONG, repr(error)
    return (RIGHT if is_same(answer, expected) else WRONG), ""


class Probe:
    """Asks one server itself for a picture, several times a second, while the block runs.

    ``right_at``: when it last answered rightly, by time.monotonic.
    """

    EVERY_S, TIMEOUT_S = 0.2, 2.0

    def __init__(self, url: str, model: str, picture: bytes, expected: Detections) -> None:
        self.right_at = float("-inf")
        self._url, self._model, self._question = url, model, (picture, expected)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(self.EVERY_S):
            with Detector(self._url, self._model, retries=0, timeout_s=self.TIMEOUT_S) as detector:
                began = time.monotonic()
                if ask(detector, *self._question)[0] == RIGHT:
                    self.right_at = began


def between(requests: Iterable[Request], began: float, ended: float) -> list[Request]:
    """Those that were on their way at some moment of this time."""
    return [each for each in requests if each.began < ended and each.ended > began]
