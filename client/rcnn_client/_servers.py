"""The servers behind a detector: which one gets a call, what every call carries, and when it is sent again."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from tritonclient.utils import InferenceServerException

from ._connection import Connection
from ._endpoints import Endpoints, backoff_s, full_queue_backoff_s
from ._errors import (
    CertificateError,
    DeadlineExceededError,
    DetectorClosedError,
    InvalidParameterError,
    QueueFullError,
    RcnnError,
    ServerUnavailableError,
    from_transport,
    refused_handshake,
)
from ._steps import Call, Plan, Sleep

T = TypeVar("T")

PROBE_TIMEOUT_S = 1.0
MIN_SHARE_S = 1.0


class Deadline:
    """`timeout_s` seconds from now.

    Raises:
        InvalidParameterError: `timeout_s` is not a positive, finite number.
    """

    def __init__(self, timeout_s: float) -> None:
        if not (isinstance(timeout_s, int | float | np.number) and 0 < timeout_s < float("inf")):
            raise InvalidParameterError(f"timeout_s is {timeout_s!r}, expected a positive number of seconds")
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds left; negative after the deadline."""
        return self._end - time.monotonic()

    def at_most(self, limit_s: float) -> Deadline:
        """This deadline, or an earlier one `limit_s` seconds from now."""
        earlier = copy.copy(self)
        earlier._end = min(self._end, time.monotonic() + limit_s)
        return earlier

    def share(self) -> Deadline:
        """The deadline of an attempt after which another server can be tried: a quarter of the time left.

        It is at least a second, since less would not tell a server that hangs from one that is slow.
        """
        return self.at_most(max(self.left_s() / 4, MIN_SHARE_S))


class Servers:
    """Plans of calls to one server, or to any that is available.

    Args:
        model: the name that errors mention.
        retries: how many times a call is sent again after its first failure.
    """

    def __init__(self, connection: Connection, model: str, retries: int) -> None:
        if retries < 0:
            raise InvalidParameterError(f"retries is {retries}, expected at least 0")
        self.connection = connection
        self.closed = False
        self._model, self._retries = model, retries
        self._endpoints = Endpoints(len(connection.urls))

    def call(self, method: str, *args: Any, deadline: Deadline) -> Plan[Any]:
        """Call a method of tritonclient on any server, with retries."""
        return (
            yield from self.retry(
                lambda endpoint, limit: self.attempt(endpoint, method, *args, deadline=limit), deadline
            )
        )

    def retry(self, attempt: Callable[[int, Deadline], Plan[T]], deadline: Deadline) -> Plan[T]:
        """Carry out the attempt on one server after the other until one answers, within the deadline.

        Args:
            attempt: gets the server's index and the deadline of this attempt. While there is a server that has
                not been tried, an attempt gets only a share of the time, so that a server that hangs leaves
                time for the others.
        """
        count = 0
        tried: set[int] = set()
        while True:
            endpoint = self._endpoints.choose(tried)
            tried.add(endpoint)
            has_another = len(tried) < len(self.connection.urls) and count < self._retries
            must_probe = has_another and self._endpoints.may_hang(endpoint)
            if must_probe and not (yield from self._answers_probe(endpoint, deadline)):
                continue
            try:
                answer = yield from attempt(endpoint, deadline.share() if has_another else deadline)
            except DeadlineExceededError:
                self._endpoints.timed_out(endpoint)
                if not has_another or deadline.left_s() <= 0:
                    raise
                count += 1
            except ServerUnavailableError as error:
                if isinstance(error, QueueFullError):
                    self._endpoints.answered(endpoint)
                    wait_s = backoff_s(count) if has_another else full_queue_backoff_s(count)
                else:
                    self._endpoints.failed(endpoint)
                    wait_s = backoff_s(count)
                if count == self._retries or wait_s >= deadline.left_s():
                    if refused_handshake(error, self.connection.uses_tls):
                        raise CertificateError(str(error)) from error
                    raise
                count += 1
                yield Sleep(wait_s)
            else:
                self._endpoints.answered(endpoint)
                return answer

    def _answers_probe(self, endpoint: int, deadline: Deadline) -> Plan[bool]:
        """Whether a server that let a call time out answers a short call."""
        try:
            yield from self.attempt(endpoint, "is_server_live", deadline=deadline.at_most(PROBE_TIMEOUT_S))
        except DeadlineExceededError:
            self._endpoints.hangs(endpoint)
            return False
        except ServerUnavailableError:
            self._endpoints.failed(endpoint)
            return False
        except DetectorClosedError:
            raise
        except RcnnError:  # a refusal is an answer
            pass
        self._endpoints.answered(endpoint)
        return True

    def is_ready(self, deadline: Deadline) -> Plan[bool]:
        """Whether one of the servers answers now and has the model loaded; those that may hang come last."""
        endpoints = sorted(range(len(self.connection.urls)), key=self._endpoints.may_hang)
        for endpoint in endpoints:
            limit = deadline if endpoint == endpoints[-1] else deadline.share()
            try:
                ready = yield from self.attempt(endpoint, "is_model_ready", self._model, deadline=limit)
            except DeadlineExceededError:
                self._endpoints.timed_out(endpoint)
            except ServerUnavailableError:
                continue
            else:
                self._endpoints.answered(endpoint)
                if ready:
                    return True
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

        Raises:
            RcnnError: the call failed.
        """
        url = self.connection.urls[endpoint]
        kwargs |= {"headers": self.connection.headers, "client_timeout": max(deadline.left_s(), 1e-3)}
        try:
            if self.closed:
                raise ValueError("closed before the call")
            return (yield Call(endpoint, method, args, kwargs))
        except Exception as error:
            if self.closed:
                urls = ", ".join(self.connection.urls)
                raise DetectorClosedError(f"the Detector of {urls} is closed; open a new one") from error
            if not isinstance(error, InferenceServerException):
                raise
            raise from_transport(
                error,
                url=url,
                model=self._model,
                timeout_s=deadline.timeout_s,
                uses_tls=self.connection.uses_tls,
                image_name=image_name,
            ) from error
