"""The IPv4 or IPv6 addresses that the server listens on, as users, clients and tritonserver write them."""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rcnn_backend.errors import ServerError
from rcnn_backend.server.flags import get_flag

PROTOCOLS = ("http", "grpc", "metrics")
LOOPBACK = "127.0.0.1"
REACHED_AT = {"0.0.0.0": LOOPBACK, "::": "::1"}  # from this host. Triton's HTTP at :: has no IPv4


@dataclass(frozen=True)
class Endpoint:
    """``address``: numeric, without brackets."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{_bracketed(self.address)}:{self.port}"

    @property
    def url(self) -> str:
        """``host:port`` for programs on this host, as tritonclient expects it."""
        return str(Endpoint(REACHED_AT.get(self.address, self.address), self.port))

    @property
    def is_for_this_host(self) -> bool:
        """Whether only programs on this host can reach it."""
        return ipaddress.ip_address(self.address).is_loopback

    def flags(self, protocol: str) -> list[str]:
        """The flags with which tritonserver listens here. For IPv6, its HTTP server needs a prefix, gRPC brackets."""
        address = _bracketed(self.address)
        if ":" in self.address and protocol != "grpc":
            address = f"ipv6:{self.address}"
        return [f"--{protocol}-address={address}", f"--{protocol}-port={self.port}"]


def find_address(host: str, flags: Sequence[str], protocol: str) -> str:
    """The numeric address that the protocol's port listens on: from the flags, or else from ``host``.

    Raises:
        ServerError: the address or the name is not known on this host.
    """
    given = get_flag(flags, f"{protocol}-address") or host
    name = given.removeprefix("ipv6:").removeprefix("ipv4:").strip("[]")
    try:
        found = socket.getaddrinfo(name or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ServerError(
            f"{given!r} is not an address of this host: give a numeric one, such as {LOOPBACK}, 0.0.0.0 or ::1"
        ) from error
    addresses = sorted((family != socket.AF_INET, str(place[0])) for family, *_, place in found)
    address = addresses[0][1]
    if "%" in address:
        raise ServerError(
            f"tritonserver cannot listen on {given}, an address with a zone: give another, or ::"
        )
    return address


def is_for_this_host(host: str, flags: Sequence[str], protocol: str) -> bool:
    """Whether only programs on this host can reach the protocol's port."""
    return Endpoint(find_address(host, flags, protocol), 0).is_for_this_host


def choose_endpoints(host: str, ports: Mapping[str, int], flags: Sequence[str]) -> dict[str, Endpoint]:
    """The endpoint of each protocol. Each port is tried here, so that a taken port is reported at once.

    Raises:
        ServerError: an address or a port cannot be used.
    """
    endpoints = {}
    with contextlib.ExitStack() as listeners:
        for protocol in PROTOCOLS:
            if get_flag(flags, f"allow-{protocol}").lower() in ("false", "0"):
                continue
            address, port = find_address(host, flags, protocol), ports.get(protocol, 0)
            shared = get_flag(flags, f"reuse-{protocol}-port").lower() in ("true", "1")
            try:
                listener = listeners.enter_context(_listen(address, port, shared))
            except (OSError, OverflowError) as error:
                if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                    reason = f"port {port} is taken, choose another with --{protocol}-port (0: any free one)"
                else:
                    reason = f"cannot listen on {Endpoint(address, port)} for {protocol}: {error}"
                raise ServerError(reason) from error
            endpoints[protocol] = Endpoint(address, listener.getsockname()[1])
    return endpoints


def _listen(address: str, port: int, shared: bool) -> socket.socket:
    is_ipv6 = ":" in address
    return socket.create_server(
        (address, port),
        family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
        reuse_port=shared,
    )


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
