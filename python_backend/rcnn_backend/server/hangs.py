"""Tells that tritonserver or the process of a Python step hangs: it is there, and nothing goes on in it.

Triton 24.10 does not notice this itself, and says that it is ready all the same.
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
BUSY = 10  # times the timeout is what a busy process gets


class Standstill(NamedTuple):
    """``what``: a sentence. ``limit_s``: how long is too long. ``state``: is equal as long as nothing goes on."""

    what: str
    limit_s: float
    state: tuple[int, ...]


@dataclass
class HangWatch:
    """Looks whether the server answers and each execution goes on.

    A process that computes is given ten times ``timeout_s``: a large picture on a slow machine is no hang.

    ``url`` and ``path``: what tritonserver answers over HTTP to anyone, or empty. ``executions``: the prefix of the
    numbers of the steps (see ``contract/executions.py``). ``hung``: a sentence, once something hangs.
    """

    server_pid: int
    url: str
    path: str
    executions: str
    timeout_s: float
    hung: str = ""
    standstills: dict[Standstill, float] = field(default_factory=dict)  # and their seconds
    looked: float = 0.0  # by time.monotonic
    seen: set[int] = field(default_factory=set)  # the steps of the last look

    def look(self, stubs: Mapping[int, Stub]) -> str:
        """Looks at the server and at ``stubs``, by process id, at most once a second; gives ``hung``."""
        now = time.monotonic()
        if self.hung or not self.timeout_s or now - self.looked < LOOK_S:
            return self.hung
        # Where this process or the whole machine was paused, nothing could go on.
        passed_s, self.looked = min(now - self.looked, LOOK_S + ANSWER_S), now
        for ended in self.seen - stubs.keys():
            remove_executions(self.executions, ended)
        self.seen = set(stubs)
        # The steps of a server that hangs have nobody to go on for.
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
            what = f"{stub.name} has been at the same requests for {{:g}} s"
            yield from self._idle_or_busy(what, pid, (count,))

    def _idle_or_busy(self, what: str, pid: int, state: tuple[int, ...]) -> Iterator[Standstill]:
        idle = what.format(self.timeout_s) + " without using the processor"
        computed = int(cpu_seconds(pid) / (COMPUTES * self.timeout_s))
        yield Standstill(idle, self.timeout_s, (pid, *state, computed))
        busy_s = BUSY * self.timeout_s
        yield Standstill(what.format(busy_s), busy_s, (pid, *state))

    def _answers(self) -> bool:
        """Whether it answers anything, be it an error. Without a URL it is taken to."""
        if not self.url:
            return True
        with contextlib.closing(http.client.HTTPConnection(self.url, timeout=ANSWER_S)) as connection:
            try:
                connection.request("GET", self.path, headers={"Connection": "close"})
                connection.getresponse().read()
            except TimeoutError:
                return False
            except FAILURES:  # no hang: it ends, or this process may open no more files
                return True
        return True
