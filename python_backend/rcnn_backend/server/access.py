"""Who may call what: TLS, a token, and the APIs of Triton that stay locked."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rcnn_backend.errors import ServerError
from rcnn_backend.server.addresses import Endpoint, is_for_this_host
from rcnn_backend.server.flags import get_flag

# The APIs that clients need. Health stays open to everyone, because health checks send no token.
FOR_CLIENTS = ("inference", "metadata", "model-config", "statistics")
# The APIs that can run any Python code, read and write the server's memory, or write any file that the server can.
# Triton cannot open only the repository's index: clients list the loaded models through their statistics.
DANGEROUS = ("model-repository", "shared-memory", "trace", "logging")
RESTRICTIONS = {"grpc": "--grpc-restricted-protocol", "http": "--http-restricted-api"}
LOCK_HEADER = "rcnn-serve"  # over gRPC: triton-grpc-protocol-rcnn-serve
TOKEN_HEADER = "token"  # over gRPC: triton-grpc-protocol-token
OPEN = ""  # needs no header


@dataclass(frozen=True)
class Access:
    """What the server requires of its callers; by default nothing, but the dangerous APIs are locked.

    ``shared_memory``: clients may register shared memory. Anyone who can reach the server can then read
    and write all of this host's shared memory that the server can. ``token``: must be sent with every call except
    health. ``tls_certificate`` and ``tls_key``: PEM files, for gRPC over TLS; HTTP has no TLS and then
    answers only health. ``tls_client_ca``: clients must present a certificate that it signed.
    """

    shared_memory: bool = False
    token: str = ""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ServerError("TLS needs both a certificate and its key: give --tls-cert and --tls-key")
        if self.tls_client_ca and not self.tls_certificate:
            raise ServerError("--tls-ca has no effect without --tls-cert and --tls-key: give these, too")
        for path in (self.tls_certificate, self.tls_key, self.tls_client_ca):
            if path and not path.is_file():
                raise ServerError(f"there is no file {path} for TLS")
        if self.token and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise ServerError(
                "the token contains blanks or non-ASCII characters: make one with `openssl rand -hex 32`"
            )


@dataclass(frozen=True)
class Locks:
    """``flags``: for tritonserver. ``admin_headers``: the headers that open its model-repository API over HTTP."""

    flags: list[str]
    admin_headers: dict[str, str]


def lock(access: Access, flags: Sequence[str], *, host: str) -> Locks:
    """Restricts the APIs that the user's ``flags`` for tritonserver leave open.

    Clients can load and unload models only with ``--model-control-mode=explicit``, and only with the token.
    If there is no token, they can do so only over a protocol that listens to this host alone.

    Args:
        host: the address that the ports listen on, unless the flags give another one.
    """
    keys = {LOCK_HEADER: secrets.token_hex(16), TOKEN_HEADER: access.token}
    explicit = get_flag(flags, "model-control-mode") == "explicit"
    admin_headers, made = {}, _tls_flags(access)
    for protocol, restriction in RESTRICTIONS.items():
        given = _restricted(flags, restriction)
        for_clients = TOKEN_HEADER if access.token else OPEN
        if protocol == "http" and access.tls_certificate:
            for_clients = LOCK_HEADER
        headers = dict.fromkeys(DANGEROUS, LOCK_HEADER) | dict.fromkeys(FOR_CLIENTS, for_clients)
        if access.shared_memory:
            headers["shared-memory"] = for_clients
        if explicit and (for_clients != OPEN or is_for_this_host(host, flags, protocol)):
            headers["model-repository"] = for_clients
        for header, key in keys.items():
            if apis := [api for api, needed in headers.items() if needed == header and api not in given]:
                made.append(f"{restriction}={','.join(apis)}:{header}={key}")
        if protocol == "http":
            header = headers["model-repository"]
            admin_headers = given.get("model-repository", {header: keys[header]} if header else {})
    return Locks(made, admin_headers)


def warn_of_others(access: Access, flags: Sequence[str], endpoints: Mapping[str, Endpoint]) -> str:
    """A warning if other hosts can reach the server without TLS or without a token; otherwise empty."""
    has_tls = bool(access.tls_certificate) or _is_on(flags, "grpc-use-ssl")
    has_clients = bool(access.token or access.tls_client_ca) or _is_on(flags, "grpc-use-ssl-mutual")
    lacking = [] if has_tls else ["TLS (--tls-cert, --tls-key)"]
    lacking += [] if has_clients else ["a token (--token-file)"]
    reached = [
        f"{protocol} {endpoint}"
        for protocol, endpoint in endpoints.items()
        if protocol in RESTRICTIONS and not endpoint.is_for_this_host
    ]
    if access.tls_certificate:
        reached = [place for place in reached if not place.startswith("http")]  # it answers only health
    if not (lacking and reached):
        return ""
    return f"Warning: other hosts may reach {' and '.join(reached)} without {' and without '.join(lacking)}"


def _is_on(flags: Sequence[str], name: str) -> bool:
    return get_flag(flags, name).lower() in ("true", "1")


def _tls_flags(access: Access) -> list[str]:
    if not access.tls_certificate:
        return []
    flags = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={access.tls_certificate}",
        f"--grpc-server-key={access.tls_key}",
    ]
    if access.tls_client_ca:
        flags += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={access.tls_client_ca}"]
    return flags


def _restricted(flags: Sequence[str], restriction: str) -> dict[str, dict[str, str]]:
    """For each API that the flags restrict, the header that opens it."""
    restricted: dict[str, dict[str, str]] = {}
    for flag in flags:
        if flag.startswith(f"{restriction}="):
            apis, _, key = get_flag([flag], restriction.lstrip("-")).partition(":")
            header, _, value = key.partition("=")
            restricted |= {api: {header: value} for api in apis.split(",")}
    return restricted
