"""Detects that tritonserver or the process of a Python step hangs: it exists but makes no progress.

Triton 24.10 does not notice this itself, and still reports that it is ready.
"""

import contextlib
import http.client
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from rcnn_backend.contract.executions import read_executions, remove_executions
from rcnn_backend.server.repository_api import FAILURES
from rcnn_backend.server.stub_processes import Stub, cpu_seconds, is_stopped

LOOK_S = 1.0
ANSWER_S = 3.0  # how long one look waits for the server's answer
GIVEN_UP_S = 2.0  # Triton fails the requests of a step's process that has been stopped for about a second
COMPUTES = 0.03  # of one core: a process that uses this much is busy
BUSY = 10  # a busy process gets this many times the timeout


class Standstill(NamedTuple):
    """A lack of progress. ``what``: a sentence about it. ``limit_s``: the seconds after which it is a hang.

    ``state``: stays equal as long as there is no progress.
    """

    what: str
    limit_s: float
    state: tuple[int, ...]


@dataclass
class HangWatch:
    """Checks that the server answers and that each execution makes progress.

    A process that computes is given ten times ``timeout_s``: a large picture on a slow machine is not a hang.

    ``url`` and ``path``: an HTTP address that tritonserver answers to anyone, or empty. ``executions``: the path prefix
    of the steps' numbers (see ``contract/executions.py``). ``hung``: a sentence about the hang, once there is one.
    """

    server_pid: int
    url: str
    path: str
    executions: str
    timeout_s: float
    hung: str = ""
    standstills: dict[Standstill, float] = field(default_factory=dict)  # each with its duration in seconds
    looked: float = 0.0  # by time.monotonic
    seen: set[int] = field(default_factory=set)  # the process ids of the steps at the last look

    def look(self, stubs: Mapping[int, Stub]) -> str:
        """Checks the server and ``stubs``, by process id, at most once a second; returns ``hung``."""
        now = time.monotonic()
        if self.hung or not self.timeout_s or now - self.looked < LOOK_S:
            return self.hung
        # While this process or the whole machine was paused, nothing could make progress.
        passed_s, self.looked = min(now - self.looked, LOOK_S + ANSWER_S), now
        for ended in self.seen - stubs.keys():
            remove_executions(self.executions, ended)
        self.seen = set(stubs)
        # Steps are not blamed while the server itself hangs, because they depend on it.
        found = [*self._server()] or [each for pid, stub in stubs.items() for each in self._step(pid, stub)]
        self.standstills = {each: self.standstills.get(each, -passed_s) + passed_s for each in found}
        for each, seconds in self.standstills.items():
            if seconds >= each.limit_s:
                self.hung = each.what
                break
        return self.hung

    def _server(self) -> Iterator[Standstill]:
        pid = self.server_pid
        if is_stopped(pid):
            yield Standstill("tritonserver was stopped by a signal", self.timeout_s, (pid,))
        elif not self._answers():
            what = f"tritonserver at {self.url} has not answered for {{:g}} s"
            yield from self._idle_or_busy(what, pid, ())

    def _step(self, pid: int, stub: Stub) -> Iterator[Standstill]:
        if is_stopped(pid):
            what = f"the process of {stub.name} was stopped by a signal"
            yield Standstill(what, min(GIVEN_UP_S, self.timeout_s), (pid,))
        elif (count := read_executions(self.executions, pid)) % 2:
            what = f"{stub.name} has been processing the same requests for {{:g}} s"
            yield from self._idle_or_busy(what, pid, (count,))

    def _idle_or_busy(self, what: str, pid: int, state: tuple[int, ...]) -> Iterator[Standstill]:
        idle = what.format(self.timeout_s) + " without using the processor"
        computed = int(cpu_seconds(pid) / (COMPUTES * self.timeout_s))
        yield Standstill(idle, self.timeout_s, (pid, *state, computed))
        busy_s = BUSY * self.timeout_s
        yield Standstill(what.format(busy_s), busy_s, (pid, *state))

    def _answers(self) -> bool:
        """Whether the server answers at all, even with an error. True without a URL."""
        if not self.url:
            return True
        with contextlib.closing(http.client.HTTPConnection(self.url, timeout=ANSWER_S)) as connection:
            try:
                connection.request("GET", self.path, headers={"Connection": "close"})
                connection.getresponse().read()
            except TimeoutError:
                return False
            except FAILURES:  # not a hang: the server is ending, or this process can open no more files
                return True
        return True
