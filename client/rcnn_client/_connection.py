"""The connection to the servers: addresses, certificates, headers."""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from ._errors import InvalidParameterError
from ._proxies import is_loopback

FilePath: TypeAlias = str | os.PathLike[str]

CHANNEL_ARGS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.lb_policy_name", "round_robin"),  # among the addresses that a name resolves to
    # A restarted server is found again within 2 s; an attempt to connect is given up after 5 s.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 5000),
    # A name is resolved again as soon as a connection to one of its addresses is lost, but once a second at most.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A connection is closed if data (TCP_USER_TIMEOUT, which gRPC sets only with keepalive) or a ping is not
    # acknowledged within 20 s. Pings are rare: a gRPC server with default settings counts pings that are less
    # than 5 minutes apart, and closes the connection after a few of them ("too_many_pings").
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
]


@dataclass(frozen=True)
class TLSConfig:
    """An encrypted connection; each file is PEM.

    Attributes:
        ca: file with the authorities that may have signed the server's certificate; None means the usual
            public authorities.
        cert, key: files of the client's own certificate and its private key, if the server asks for one
            (mutual TLS).
    """

    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read and check the files.

        Raises:
            InvalidParameterError: a file cannot be read or is not such a file, or one of a pair is missing.
        """
        if (self.cert is None) != (self.key is None):
            raise InvalidParameterError("tls: cert and key belong together; one was given")
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key, password="")
            files = (self.ca, self.key, self.cert)
            return grpc.ssl_channel_credentials(*(path and Path(path).read_bytes() for path in files))
        except (OSError, ssl.SSLError) as error:  # an SSLError is an OSError without a file name
            raise InvalidParameterError(
                f"{self} cannot be used: {error}; expected PEM files, and the certificate's own private key, without a password"
            ) from error


class Connection:
    """The checked settings of a connection.

    Args:
        url: host:port, or several.
        headers: sent with every call; names may be in upper or lower case.

    Raises:
        InvalidParameterError: an address, certificate or header is not valid.
    """

    def __init__(
        self, url: str | Sequence[str], tls: TLSConfig | None, headers: Mapping[str, str] | None
    ) -> None:
        self.urls = [url] if isinstance(url, str) else list(url)
        for given in self.urls or [""]:
            if "://" in given or ":" not in given:
                raise InvalidParameterError(f"url is {url!r}, expected host:port, for example localhost:8001")
        self.headers = {name.lower(): value for name, value in (headers or {}).items()}
        for name, value in self.headers.items():
            if not re.fullmatch(r"[0-9a-z_.-]+", name) or not re.fullmatch(r"[ -~]*", value):
                raise InvalidParameterError(
                    f"headers has {name!r}: expected letters, digits, '_', '-' and '.' in its name and "
                    "printable ASCII in its value"
                )
        self.uses_tls = tls is not None
        self._tls, self._credentials = tls, tls and tls.credentials()

    def open(self, client_class: Any, endpoint: int) -> Any:
        """A tritonclient of that class for one of the servers; it connects at its first call.

        The certificates are read again, because they may have been replaced.
        """
        if self._tls is not None:
            with contextlib.suppress(InvalidParameterError):  # for example, one is half written
                self._credentials = self._tls.credentials()
        url = self.urls[endpoint]
        use_proxy = [("grpc.enable_http_proxy", int(not is_loopback(url)))]
        return client_class(url, creds=self._credentials, channel_args=CHANNEL_ARGS + use_proxy)
