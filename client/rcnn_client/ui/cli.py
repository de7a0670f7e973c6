"""rcnn-ui: listens, and serves the page and its HTTP interface until Ctrl-C."""

from __future__ import annotations

import argparse
import errno
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from .._errors import InvalidParameterError
from ..tools.certificates import tls_config
from ..tools.console import complain
from .app import make_app
from .arguments import PROG, parse
from .label_studio.pictures import read_sources
from .security import is_this_host
from .triton_server import TritonServer

SHUTDOWN_S = 2.0  # for requests that are still running at Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run rcnn-ui; returns the exit code, see its help. Wrong usage exits with 2."""
    args = parse(argv)
    try:
        token = read_token("--token-file", args.token_file)
        if not token and not is_this_host(args.host):
            raise InvalidParameterError(
                f"--host {args.host} opens the page to other hosts, which needs a token: write one with "
                "`openssl rand -hex 32 > token` and add --token-file token"
            )
        label_studio_token = read_token("--label-studio-token-file", args.label_studio_token_file)
        sources = read_sources(args.label_studio, label_studio_token, args.picture_host)
        server = TritonServer(args.url, tls_config(args), dict(args.header))
        app = make_app(
            server, in_flight=args.in_flight, timeout_s=args.timeout_s, token=token, sources=sources
        )
    except InvalidParameterError as error:
        complain(PROG, error)
        return 2
    except OSError as error:
        return complain(PROG, error)
    try:
        listener = listen(args.host, args.port)
    except OSError as error:
        reason = "the port is taken, choose another with --port" if error.errno == errno.EADDRINUSE else error
        return complain(PROG, f"cannot listen on {args.host} at port {args.port}: {reason}")
    _announce(args, listener.getsockname()[1])
    web.run_app(
        app,
        sock=listener,
        print=None,
        access_log=None,
        handler_cancellation=True,  # when a client disconnects
        shutdown_timeout=SHUTDOWN_S,
    )
    return 0


def read_token(option: str, path: Path | None) -> str:
    """The token in the file that an option names, without the line end; empty if there is no file.

    Raises:
        InvalidParameterError: it is empty or cannot be sent in a header.
        OSError: the file cannot be read.
    """
    if path is None:
        return ""
    token = path.read_bytes().strip().decode("ascii", "replace")
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise InvalidParameterError(
            f"{option} {path} contains no token: expected one line of ASCII without blanks"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at a host name or address; port 0 means a free one.

    Raises:
        OSError: there is no such address here, or the port is taken.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = min(found, key=lambda place: place[0] != socket.AF_INET)
    return socket.create_server(address[:2], family=family)


def _announce(args: argparse.Namespace, port: int) -> None:
    host = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{host}:{port}"
    if args.token_file:
        address += "/#token=... with the token, or the page asks for it"
    complain(PROG, f"shows the detectors of {args.url} at {address} (Ctrl-C stops it)")
    if not is_this_host(args.host):
        complain(
            PROG,
            "Warning: other hosts reach this page without TLS; others can read the pictures and the token on the network. "
            "Put a proxy with TLS in front of it unless the network is your own",
        )


if __name__ == "__main__":
    sys.exit(main())
