"""Who may call what: TLS, a token, and the APIs of Triton that stay locked."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rcnn_backend.errors import ServerError
from rcnn_backend.server.flags import get_flag

# What a client needs. Health stays open to all, for whoever checks it has no token.
FOR_CLIENTS = ("inference", "metadata", "model-config", "statistics")
# What runs any Python sent to it, reads and writes the server's memory, or writes any file it may.
DANGEROUS = ("model-repository", "shared-memory", "trace", "logging")
RESTRICTIONS = {"grpc": "--grpc-restricted-protocol", "http": "--http-restricted-api"}
TOKEN_HEADER = "token"  # over gRPC: triton-grpc-protocol-token


@dataclass(frozen=True)
class Access:
    """What the server asks of its callers; by default nothing, with the dangerous APIs locked.

    ``shared_memory``: clients may register shared memory. Whoever reaches the server can then read
    and write any of this host's that the server may. ``token``: to be sent with every call but
    health. ``tls_certificate`` and ``tls_key``: PEM files, for gRPC over TLS; HTTP, which has none,
    then answers health only. ``tls_client_ca``: clients show a certificate that it signed.
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
            raise ServerError("--tls-ca is of use with --tls-cert and --tls-key only: give these, too")
        for path in (self.tls_certificate, self.tls_key, self.tls_client_ca):
            if path and not path.is_file():
                raise ServerError(f"there is no file {path} for TLS")
        if self.token and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise ServerError(
                "the token has blanks or characters other than ASCII: make one by `openssl rand -hex 32`"
            )


@dataclass(frozen=True)
class Locks:
    """``flags`` for tritonserver; ``admin_headers`` open its model-repository API over HTTP."""

    flags: list[str]
    admin_headers: dict[str, str]


def lock(access: Access, flags: Sequence[str], *, models_are_chosen: bool) -> Locks:
    """Restricts what the ``flags`` for tritonserver do not restrict themselves.

    Args:
        models_are_chosen: whether the models served stay as they are; where not, model-repository,
            which loads others, stays open.
    """
    locked = [api for api in DANGEROUS if api != "model-repository" or models_are_chosen]
    with_token = list(FOR_CLIENTS)
    if access.shared_memory:
        locked.remove("shared-memory")
        with_token.append("shared-memory")
    admin_key, made = secrets.token_hex(16), _tls_flags(access)
    admin_headers = {"rcnn-serve": admin_key}
    for protocol, restriction in RESTRICTIONS.items():
        given = _restricted(flags, restriction)
        if protocol == "http" and "model-repository" in given:
            admin_headers = given["model-repository"]
        only_health = protocol == "http" and access.tls_certificate is not None
        groups = [
            (f"rcnn-serve={admin_key}", locked + (with_token if only_health else [])),
            (f"{TOKEN_HEADER}={access.token}", with_token if access.token and not only_health else []),
        ]
        for key, apis in groups:
            if open_ones := [api for api in apis if api not in given]:
                made.append(f"{restriction}={','.join(open_ones)}:{key}")
    return Locks(made, admin_headers)


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
    """The header that opens each API which the flags restrict, by API."""
    restricted: dict[str, dict[str, str]] = {}
    for flag in flags:
        if flag.startswith(f"{restriction}="):
            apis, _, key = get_flag([flag], restriction.lstrip("-")).partition(":")
            header, _, value = key.partition("=")
            restricted |= {api: {header: value} for api in apis.split(",")}
    return restricted
