"""The servers behind a detector: which one gets a call, what is sent with it, and when it is sent again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tritonclient.utils import InferenceServerException

from ._connection import Connection
from ._deadline import Deadline
from ._endpoints import PROBE_TIMEOUT_S, Endpoints, backoff_s, full_queue_backoff_s
from ._errors import (
    CertificateError,
    DeadlineExceededError,
    DetectorClosedError,
    InvalidParameterError,
    ModelNotFoundError,
    QueueFullError,
    RcnnError,
    ServerUnavailableError,
    from_transport,
    refused_handshake,
)
from ._steps import Call, Plan, Running, Sleep, Start, Wait

T = TypeVar("T")

SHORT_CALL_S = 1.0
CHECK_S = 0.1


class Servers:
    """Plans of calls to one server, or to any that is available.

    Args:
        model: the name that errors mention.
        retries: how many times a call is sent again after its first failure. Unless it is 0, every server is
            tried once.
    """

    def __init__(self, connection: Connection, model: str, retries: int) -> None:
        if retries < 0:
            raise InvalidParameterError(f"retries is {retries}, expected at least 0")
        self.connection = connection
        self.closed = False
        self._count = len(connection.urls)
        self._model, self._retries = model, max(retries, self._count - 1) if retries else 0
        self._endpoints = Endpoints(self._count)

    def call(self, method: str, *args: Any, deadline: Deadline) -> Plan[Any]:
        """Call a method of tritonclient on any server, with retries."""
        return (
            yield from self.retry(
                lambda endpoint, limit: self.attempt(endpoint, method, *args, deadline=limit), deadline
            )
        )

    def retry(self, attempt: Callable[[int, Deadline], Plan[T]], deadline: Deadline) -> Plan[T]:
        """Carry out the attempt on one server after another until one answers, within the deadline.

        Args:
            attempt: gets the server's index and the deadline of this attempt. While there is a server that has
                not been tried, an attempt gets only a share of the time, so that a server that does not answer
                leaves time for the others.
        """
        count = 0
        tried: set[int] = set()
        refused: list[int] = []
        while True:
            endpoint = self._endpoints.choose(tried)
            tried.add(endpoint)
            can_move = self._count > 1 and count < self._retries
            has_untried = can_move and len(tried) < self._count
            if (
                has_untried
                and self._endpoints.may_hang(endpoint)
                and not (yield from self._is_live(endpoint, deadline))
            ):
                continue
            limit = deadline.share() if has_untried else deadline
            try:
                answer = yield from attempt(endpoint, limit.movable() if can_move else limit)
            except DeadlineExceededError:
                self._endpoints.timed_out(endpoint)
                if not can_move or deadline.left_s() <= 0:
                    raise
            except (ModelNotFoundError, CertificateError):  # another server may have what is missing here
                self._endpoints.failed(endpoint)
                refused.append(endpoint)
                if count == self._retries or not self._endpoints.another_works(endpoint):
                    for each in refused:
                        self._endpoints.answered(each)
                    raise
            except ServerUnavailableError as error:
                if isinstance(error, QueueFullError):
                    self._endpoints.answered(endpoint)
                    wait_s = backoff_s(0) if has_untried else full_queue_backoff_s(count)
                else:
                    self._endpoints.failed(endpoint)
                    wait_s = backoff_s(0 if has_untried else count)
                if count == self._retries or wait_s >= deadline.left_s():
                    if refused_handshake(error, self.connection.uses_tls):
                        raise CertificateError(str(error)) from error
                    raise
                yield Sleep(wait_s)
            else:
                self._endpoints.answered(endpoint)
                return answer
            count += 1

    def is_ready(self, deadline: Deadline) -> Plan[bool]:
        """Whether one of the servers answers now and has the model loaded; those that may hang come last."""
        endpoints = sorted(range(self._count), key=self._endpoints.may_hang)
        any_answered, refused = False, None
        for endpoint in endpoints:
            limit = deadline if endpoint == endpoints[-1] else deadline.share()
            try:
                ready = yield from self.attempt(
                    endpoint, "is_model_ready", self._model, deadline=limit.movable()
                )
            except DeadlineExceededError:
                self._endpoints.timed_out(endpoint)
            except ServerUnavailableError:
                self._endpoints.failed(endpoint)
            except CertificateError as error:
                self._endpoints.failed(endpoint)
                refused = error
            else:
                any_answered = True
                self._endpoints.answered(endpoint)
                if ready:
                    return True
        if refused is not None and not any_answered:
            raise refused
        return False

    def attempt(
        self,
        endpoint: int,
        method: str,
        *args: Any,
        deadline: Deadline,
        image_name: str | None = None,
        **kwargs: Any,
    ) -> Plan[Any]:
        """Call a method of tritonclient once on this server, and translate its errors.

        If the call can move, it is given up early if the server hangs and another one works.

        Raises:
            RcnnError: the call failed.
        """
        call = Call(endpoint, method, args, kwargs)
        if method == "infer" or not deadline.can_move or not self._endpoints.another_works(endpoint):
            return (yield from self._send(call, deadline, image_name))
        try:
            return (yield from self._send(call, deadline.short(SHORT_CALL_S)))
        except DeadlineExceededError:
            yield from self._is_live(endpoint, deadline, connections=(True,))
            raise

    def _send(self, call: Call, deadline: Deadline, image_name: str | None = None) -> Plan[Any]:
        """Carry out the call, and translate its errors."""
        limits = {"headers": self.connection.headers, "client_timeout": max(deadline.left_s(), 1e-3)}
        call = dataclasses.replace(call, kwargs=call.kwargs | limits)
        try:
            if self.closed:
                raise ValueError("closed before the call")
            if call.method == "infer" and deadline.can_move:
                return (yield from self._watch(call, deadline))
            return (yield call)
        except Exception as error:
            if self.closed:
                urls = ", ".join(self.connection.urls)
                raise DetectorClosedError(f"the Detector of {urls} is closed; open a new one") from error
            if not isinstance(error, InferenceServerException):
                raise
            raise from_transport(
                error,
                url=self.connection.urls[call.endpoint],
                model=self._model,
                timeout_s=deadline.timeout_s,
                uses_tls=self.connection.uses_tls,
                image_name=image_name,
            ) from error

    def _watch(self, call: Call, deadline: Deadline) -> Plan[Any]:
        """Carry out the call, and probe its server while it is silent and another one works."""
        running: Running = yield Start(call)
        sent_at = time.monotonic()
        try:
            while not (yield Wait(running, CHECK_S)):
                if not self._endpoints.another_works(call.endpoint):
                    continue
                if self._endpoints.begin_probe(call.endpoint, sent_at):
                    try:
                        yield from self._is_live(call.endpoint, deadline)
                    finally:
                        self._endpoints.end_probe(call.endpoint)
                if self._endpoints.has_hung_since(call.endpoint, sent_at) and not running.done():
                    raise InferenceServerException("the server hangs", "StatusCode.DEADLINE_EXCEEDED")
            return running.result()
        finally:
            running.cancel()
            del running  # its error refers to this frame

    def _is_live(
        self, endpoint: int, deadline: Deadline, connections: Sequence[bool] = (False, True)
    ) -> Plan[bool]:
        """Whether a server answers a short call, on its connection or on another, as a picture may block the first.

        Args:
            connections: for each probe, whether it uses the second connection (`apart` of `Call`).
        """
        for apart in connections:
            probe = Call(endpoint, "is_server_live", (), {}, apart)
            try:
                yield from self._send(probe, deadline.short(PROBE_TIMEOUT_S))
            except DeadlineExceededError:
                continue
            except ServerUnavailableError:
                if apart:  # the first connection is silent as well
                    continue
                self._endpoints.failed(endpoint)
                return False
            except DetectorClosedError:
                raise
            except RcnnError:  # a refusal is an answer
                pass
            self._endpoints.answered(endpoint)
            return True
        self._endpoints.hangs(endpoint)
        return False
