"""The open connections of a detector: one tritonclient for each of its servers."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

from ._connection import Connection

REOPEN_S = 5.0


class Clients:
    """Opens a tritonclient at the first call of an endpoint, and a new one after calls have failed.

    The old connection may be the reason why calls fail. The host name may have another address by now, which gRPC
    looks up less and less often, up to two minutes apart. Or a firewall may have forgotten the connection, or the
    certificate files may have been replaced.

    Safe to share between threads.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._clients: dict[tuple[int, Any], Any] = {}
        self._replaced: weakref.WeakSet[Any] = weakref.WeakSet()  # calls may still run on these
        self._worked_at = time.monotonic()  # or when they were opened, to give new ones the same time
        self._closed = False
        self._lock = threading.Lock()

    def client(self, endpoint: int, client_class: Any) -> Any:
        """The tritonclient of an endpoint.

        Args:
            client_class: tritonclient's, for threads or for asyncio.

        Raises:
            ValueError: `close` was called.
        """
        with self._lock:
            if self._closed:
                raise ValueError("closed before the call")
            key = (endpoint, client_class)
            if key not in self._clients:
                self._clients[key] = self._connection.open(client_class, endpoint)
            return self._clients[key]

    def answered(self) -> None:
        """A server answered a call just now."""
        self._worked_at = time.monotonic()

    def failed(self) -> None:
        """No server answered a call. If none did for `REOPEN_S` seconds, the next calls open new connections.

        Running calls continue.
        """
        with self._lock:
            if time.monotonic() - self._worked_at >= REOPEN_S:
                self._worked_at = time.monotonic()
                self._replaced.update(self._clients.values())
                self._clients.clear()

    def close(self) -> list[Any]:
        """Refuse new calls from now on; returns the tritonclients that the caller must close."""
        with self._lock:  # waits for a client that is being opened
            self._closed = True
            clients = [*self._clients.values(), *self._replaced]
            self._clients.clear()
            return clients
