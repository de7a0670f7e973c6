"""All exceptions of the package, and the function that translates transport errors into them."""

from __future__ import annotations

import re

from tritonclient.utils import InferenceServerException

from ._detections import Detections
from ._proxies import host_of, proxy_variable

# Triton's messages for a request that found the queue full, and for one that waited too long in the queue.
FULL_QUEUE = ("Exceeds maximum queue size", "Request timeout expired")
# gRPC's messages for a host name that cannot be resolved (name and reason are groups), and for TLS that failed on
# this side.
UNRESOLVED = r"errors resolving .*lookup failed for ([^ ]+):\w+: ([^\]]+)"
FAILED_HANDSHAKE = ("handshake failed", "Hostname Verification Check failed")


class RcnnError(Exception):
    """Base of this package's errors."""


class InvalidImageError(RcnnError, ValueError):
    """A picture cannot be read or sent, or the server refused it; the message names it."""


class InvalidParameterError(RcnnError, ValueError):
    """An argument other than a picture is outside its range."""


class ServerUnavailableError(RcnnError, ConnectionError):
    """No Triton server answers at the address, or it accepts no requests now."""


class QueueFullError(ServerUnavailableError):
    """The server works, but its queue of waiting requests is full."""


class CertificateError(RcnnError, ConnectionError):
    """TLS failed: the client does not trust the server's certificate, or the server does not trust the client's."""


class AccessDeniedError(RcnnError, PermissionError):
    """The server expects a header that was missing or had another value."""


class DeadlineExceededError(RcnnError, TimeoutError):
    """The server did not answer within `timeout_s`."""


class ModelNotFoundError(RcnnError, LookupError):
    """The server has no model of that name."""


class NotADetectorError(RcnnError):
    """The inputs or outputs of the served model are not a detector's, or its config has no class names."""


class ServerError(RcnnError):
    """The server failed, or its answer is not what the model's config promises."""


class DetectorClosedError(RcnnError):
    """The `Detector` was closed before the call, or during it."""


class BatchError(RcnnError):
    """Some pictures of a batch failed; raised when every picture has its answer or its error.

    Attributes:
        results: one entry per picture, in the order given: its `Detections`, or None where it failed.
        errors: index of each failed picture -> its error.
    """

    def __init__(self, results: list[Detections | None], errors: dict[int, RcnnError]) -> None:
        super().__init__(results, errors)
        self.results = results
        self.errors = errors

    def __str__(self) -> str:
        shown = [f"images[{index}]: {error}" for index, error in list(self.errors.items())[:5]]
        if len(self.errors) > len(shown):
            shown.append(f"and {len(self.errors) - len(shown)} more (see .errors)")
        return f"{len(self.errors)} of {len(self.results)} images failed\n" + "\n".join(shown)


def from_transport(
    error: InferenceServerException,
    *,
    url: str,
    model: str,
    timeout_s: float,
    uses_tls: bool = False,
    image_name: str | None = None,
) -> RcnnError:
    """Translate tritonclient's error by its gRPC status.

    `image_name` is set if the call carried a picture. INVALID_ARGUMENT then means the picture, because the
    parameters were checked before they were sent.
    """
    status = str(error.status() or "no status").removeprefix("StatusCode.")
    said = (error.message() or "no details").rstrip(".")
    about = "" if image_name is None else f"{image_name}: "
    if status == "INVALID_ARGUMENT" and image_name is not None:
        return InvalidImageError(f"{about}{said}")
    if status == "DEADLINE_EXCEEDED":
        return DeadlineExceededError(
            f"{about}no answer from {url} within {timeout_s:.3g} s; the server is overloaded or unreachable, "
            f"or timeout_s is too short for it{_through_proxy(url)}"
        )
    if status == "UNAVAILABLE" and any(words in said for words in FAILED_HANDSHAKE):
        return CertificateError(f"{about}no secure connection to {url}: {_what_failed(said, url)}")
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED") or "protocol is restricted" in said:
        return AccessDeniedError(f"{about}{url} refuses the call: {said}. Give it with Detector(headers=...)")
    if status == "UNAVAILABLE" and any(words in said for words in FULL_QUEUE):
        return QueueFullError(
            f"{about}{url} has too many requests waiting for model {model!r}: {said}. "
            "Send fewer at once (in_flight), or add a server"
        )
    if status == "UNAVAILABLE" and (found := re.search(UNRESOLVED, said)):
        return ServerUnavailableError(
            f"{about}no server at {url}: the name {found[1]!r} cannot be resolved: {found[2]}. "
            f"Check its spelling, and whether this host's name server (DNS) knows it{_through_proxy(url)}"
        )
    # CANCELLED: the server stopped. "No available versions": the model is being loaded or unloaded.
    if status in ("UNAVAILABLE", "CANCELLED") or "has no available versions" in said:
        return ServerUnavailableError(
            f"{about}{url} does not serve model {model!r} now: {said}. {_advice(said, uses_tls)}{_through_proxy(url).removeprefix('.')}"
        )
    if status == "NOT_FOUND":
        return ModelNotFoundError(
            f"{about}the server at {url} has no model {model!r}: {said}. "
            "Name a detector of its model repository; if it is there, the server's log says what is wrong"
        )
    if "Stub process" in said:  # of a Python step; rcnn-serve notices this, and exits to be started again
        return ServerUnavailableError(
            f"{about}{url} cannot run model {model!r} now: {said}. A process of the server has died or hangs; "
            "the server's log says which, and it must be started again"
        )
    if "Unable to open shared memory region" in said:
        said += (
            '. transport="shm" needs a server on this host that sees the same /dev/shm (docker: --ipc=host)'
        )
    return ServerError(f"{about}{url} failed on model {model!r}: {status}: {said}")


def _through_proxy(url: str) -> str:
    """The advice about the proxy that the call went through, if there is one."""
    if not (variable := proxy_variable(url)):
        return ""
    return (
        f". The call went through the proxy of the environment variable {variable}: if it should not, add "
        f"{host_of(url)} to no_proxy"
    )


def _what_failed(said: str, url: str) -> str:
    """The reason why this side ended a TLS handshake, and what to do."""
    if "certificate has expired" in said:
        return (
            "the server's certificate, or the authority that signed it, has expired. Replace it and restart the "
            "server; if it is still valid, set this host's clock"
        )
    if "certificate is not yet valid" in said:
        return "the server's certificate is not valid yet. Check this host's clock and the certificate's start date"
    if "Hostname Verification Check failed" in said:
        return (
            f"the server's certificate is not for {host_of(url)!r}. Call the server by a name in its certificate, "
            "or add this name to the certificate (subjectAltName)"
        )
    return (
        f"{said}. Was the server's certificate signed by one of tls.ca, for this host name, and does the server "
        "use TLS?"
    )


def _advice(said: str, uses_tls: bool) -> str:
    if not _hung_up(said):
        return "Is the server running there, and is this its gRPC port (8001 unless changed)?"
    if uses_tls:
        return "Does it ask for a client certificate, is tls.cert still valid, and does it trust tls.cert?"
    return "Does it expect TLS (Detector(tls=TLSConfig(...)))?"


def _hung_up(said: str) -> bool:
    """Whether a server accepted the connection and closed it before any call."""
    return "last error" in said and "Socket closed" in said


def refused_handshake(error: RcnnError, uses_tls: bool) -> bool:
    """Whether the server hung up during TLS, as it does if it does not trust the client's certificate."""
    return uses_tls and _hung_up(str(error))
