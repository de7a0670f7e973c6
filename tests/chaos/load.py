"""Clients that send requests without a pause, and the outcome of each request."""

import math
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rcnn_client import Detections, Detector, RcnnError

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from pictures import SCORE_THRESH, ask_alone, encode_strips, is_same

NUM_CLIENTS = 16
TIMEOUT_S = 10.0
LATE_S = TIMEOUT_S + 2.0  # a request that has not ended by then is lost
RIGHT, WRONG, LOST = "right", "wrong", "lost"


@dataclass(frozen=True)
class Request:
    """``began``, ``ended``: in the time of time.monotonic. ``outcome``: right, wrong, lost, or the class of the error."""

    began: float
    ended: float
    outcome: str
    message: str = ""


@dataclass(frozen=True)
class Question:
    """A picture, and the answer to it of a server without faults."""

    picture: bytes
    expected: Detections


def make_questions(url: str, model: str) -> list[Question]:
    """One question for each thin strip of the sample pictures in which something is found, sent one after the other."""
    pictures = encode_strips()
    questions = map(Question, pictures, ask_alone(url, model, pictures))
    return [question for question in questions if len(question.expected)]


class Load:
    """While the block runs, ``num_clients`` threads send the pictures to the servers at ``urls``, each in its own order.

    ``requests``: the requests that have ended, in the order of their ends; after the block also those that never ended.
    ``failed_at``: when a request last had no right answer, in the time of time.monotonic.
    """

    def __init__(
        self, urls: Sequence[str], model: str, questions: Sequence[Question], num_clients: int
    ) -> None:
        self.requests: list[Request] = []
        self.failed_at = -math.inf
        self._urls, self._model, self._questions = list(urls), model, questions
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(client,), daemon=True) for client in range(num_clients)
        ]
        self._began: dict[int, float] = {}  # when each client began its request that has not ended
        self._last_right = dict.fromkeys(range(num_clients), -math.inf)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        until = time.monotonic() + LATE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self.requests += [Request(began, began + LATE_S, LOST) for began in list(self._began.values())]

    def serves_all_since(self, moment: float) -> bool:
        """Whether the last request of every client had a right answer and began after ``moment``."""
        return min(self._last_right.values()) > moment

    def _ask(self, client: int) -> None:
        turn = client
        with Detector(self._urls, self._model, timeout_s=TIMEOUT_S) as detector:
            while not self._over.is_set():
                question, turn = self._questions[turn % len(self._questions)], turn + 5
                began = self._began[client] = time.monotonic()
                outcome, message = ask(detector, question)
                ended = time.monotonic()
                if ended - began > LATE_S:
                    outcome = LOST
                self.requests.append(Request(began, ended, outcome, message))
                del self._began[client]
                self._last_right[client] = began if outcome == RIGHT else -math.inf
                if outcome != RIGHT:
                    self.failed_at = ended


def ask(detector: Detector, question: Question) -> tuple[str, str]:
    """The outcome of one request, and the message of its error. An exception that is not the client's own counts as wrong."""
    try:
        answer = detector.detect(question.picture, score_thresh=SCORE_THRESH)
    except RcnnError as error:
        return type(error).__name__, str(error)
    except Exception as error:
        return WRONG, repr(error)
    return (RIGHT if is_same(answer, question.expected) else WRONG), ""


class Probe:
    """While the block runs, sends a picture directly to one server several times a second.

    ``right_since``: the time (of time.monotonic) of the server's first right answer after its last failure; infinite
    while it fails.
    """

    EVERY_S, TIMEOUT_S = 0.2, 5.0

    def __init__(self, url: str, model: str, question: Question) -> None:
        self.right_since = math.inf
        self._url, self._model, self._question = url, model, question
        self._over = threading.Event()
        self._thread = threading.Thread()

    def __enter__(self) -> "Probe":
        self.right_since = math.inf
        self._over.clear()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(self.EVERY_S):
            with Detector(self._url, self._model, retries=0, timeout_s=self.TIMEOUT_S) as detector:
                outcome, _ = ask(detector, self._question)
            if outcome == RIGHT:
                self.right_since = min(self.right_since, time.monotonic())
            else:
                self.right_since = math.inf
