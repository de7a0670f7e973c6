"""The proxy that gRPC takes from the environment.

https://github.com/grpc/grpc/blob/master/doc/environment_variables.md
"""

from __future__ import annotations

import ipaddress
import os

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # gRPC takes the first that is set
EXEMPTIONS = ("no_grpc_proxy", "no_proxy")


def host_of(url: str) -> str:
    """The host in `host:port`, without the brackets of an IPv6 address or a scheme such as `ipv4:`."""
    return url.removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0].strip("[]")


def is_loopback(url: str) -> bool:
    """Whether the address is this host itself, which no proxy can reach."""
    host = host_of(url)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def proxy_variable(url: str) -> str:
    """The variable with the proxy that gRPC uses for the address, such as `https_proxy`; empty if it connects directly."""
    if is_loopback(url):
        return ""
    exempt = next((os.environ[name] for name in EXEMPTIONS if name in os.environ), "")
    if any(entry and host_of(url).endswith(entry) for entry in map(str.strip, exempt.split(","))):
        return ""
    return next((name for name in VARIABLES if os.environ.get(name)), "")
