"""The servers behind a detector: whose turn it is, what every call carries, and when it is sent again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from tritonclient.utils import InferenceServerException

from ._connection import Connection
from ._endpoints import Endpoints, backoff_s
from ._errors import (
    CertificateError,
    DetectorClosedError,
    InvalidParameterError,
    ServerUnavailableError,
    from_transport,
    refused_handshake,
)
from ._steps import Call, Plan, Sleep

T = TypeVar("T")


class Deadline:
    """`timeout_s` seconds from now.

    Raises:
        InvalidParameterError: it is no positive number of seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        if not 0 < timeout_s < float("inf"):
            raise InvalidParameterError(f"timeout_s is {timeout_s}, expected a positive number of seconds")
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds until then, negative after it."""
        return self._end - time.monotonic()


class Servers:
    """Plans of calls to one server or to whichever is available.

    Args:
        model: what errors name.
        retries: how often a call is sent again after its first failure.
    """

    def __init__(self, connection: Connection, model: str, retries: int) -> None:
        if retries < 0:
            raise InvalidParameterError(f"retries is {retries}, expected at least 0")
        self.connection = connection
        self.closed = False
        self._model, self._retries = model, retries
        self._endpoints = Endpoints(len(connection.urls))

    def call(self, method: str, *args: Any, deadline: Deadline) -> Plan[Any]:
        """A method of tritonclient's on any server, retried."""
        return (
            yield from self.retry(
                lambda endpoint: self.attempt(endpoint, method, *args, deadline=deadline), deadline
            )
        )

    def retry(self, attempt: Callable[[int], Plan[T]], deadline: Deadline) -> Plan[T]:
        """Do it on one server after the other until one is available, within the deadline."""
        count = 0
        while True:
            endpoint = self._endpoints.choose()
            try:
                answer = yield from attempt(endpoint)
            except ServerUnavailableError as error:
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

    def attempt(
        self,
        endpoint: int,
        method: str,
        *args: Any,
        deadline: Deadline,
        image_name: str | None = None,
        **kwargs: Any,
    ) -> Plan[Any]:
        """A method of tritonclient's on this server, once; its errors translated.

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
