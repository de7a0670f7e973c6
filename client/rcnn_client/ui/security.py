"""Which requests are allowed (other sites, other hosts, the token), and what the browser may do with the page."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .pages import is_page

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Server": "rcnn-ui",
}


class Refused(Exception):
    """A request that is not allowed.

    Args:
        status: HTTP status, 401 or 403.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def is_this_host(host: str) -> bool:
    """Whether a host name or an address, without port and brackets, is this machine's loopback."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def guard(token: str) -> Middleware:
    """The middleware that refuses requests that are not allowed.

    Without a token, the page is for this machine only. A website in the user's browser could make its own host name
    resolve to this machine (DNS rebinding), so the Host must be a name of the loopback. With a token, which no other
    site knows, any name is fine, since a proxy in front may have one.

    Args:
        token: the token that the header Authorization must contain for everything but the page, as Bearer or as the
            password of Basic, which is all that Label Studio can send; empty if none is needed.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if not token and not is_this_host(_host_name(host)):
            raise Refused(
                403,
                f"the request is for host {host!r}, expected localhost or 127.0.0.1; for other names start rcnn-ui "
                "with --token-file",
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refused(
                403,
                f"the request comes from a page of {origin}; only this server's own page may send requests",
            )
        if token and not is_page(request.path) and not _brings(request, token):
            raise Refused(
                401, "the token is missing or wrong; send it as the header Authorization: Bearer TOKEN"
            )
        return await handler(request)

    return check


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add HEADERS to a response."""
    response.headers.update(HEADERS)


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _brings(request: web.Request, token: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    sent = given.strip().encode(errors="surrogateescape")
    if scheme.lower() == "basic":
        try:
            sent = base64.b64decode(sent).partition(b":")[2]
        except binascii.Error:
            return False
    return hmac.compare_digest(sent, token.encode()) and scheme.lower() in ("bearer", "basic")
