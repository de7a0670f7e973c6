"""The arguments that several commands have. Imports nothing slow, so that `--help` is fast."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

SCORE_THRESH = 0.001  # COCO's metrics are measured with the detections whose score is above it
STDIO = "-"  # in place of a file: stdin or stdout


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add `--version`, which prints the version of the installed package."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('rcnn-client')}")


def add_url(parser: argparse._ActionsContainer) -> None:
    """Add `--url`, of one server."""
    parser.add_argument(
        "--url",
        default="localhost:8001",
        metavar="HOST:PORT",
        help="gRPC address of the server (default: %(default)s)",
    )


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--url`, `--model` and the options of the connection, as in rcnn-detect."""
    server = parser.add_argument_group("server")
    add_url(server)
    server.add_argument(
        "--model", default="faster_rcnn", metavar="NAME", help="detector on the server (default: %(default)s)"
    )
    add_connection_arguments(server)


def add_in_flight(parser: argparse._ActionsContainer) -> None:
    """Add `--in-flight`, as in `Detector.detect_stream`."""
    parser.add_argument(
        "--in-flight",
        type=positive,
        default=16,
        metavar="N",
        help="how many pictures are at the server at the same time (default: %(default)s)",
    )


def add_timeout(parser: argparse._ActionsContainer) -> None:
    """Add `--timeout-s`, of each picture."""
    parser.add_argument(
        "--timeout-s",
        type=seconds,
        default=60.0,
        metavar="S",
        help="how long a picture may take, in seconds (default: %(default)g)",
    )


def add_connection_arguments(group: argparse._ArgumentGroup) -> None:
    """Add `--header` and the certificates, which `certificates.tls_config` reads."""
    group.add_argument(
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="header to send with every call, for example a token; may be repeated",
    )
    group.add_argument(
        "--tls",
        action="store_true",
        help="encrypt the connection; each of the next three options implies this",
    )
    group.add_argument(
        "--tls-ca",
        type=Path,
        metavar="PEM",
        help="authorities that may have signed the server's certificate (default: the usual public ones)",
    )
    group.add_argument(
        "--tls-cert", type=Path, metavar="PEM", help="your own certificate, if the server asks for one"
    )
    group.add_argument("--tls-key", type=Path, metavar="PEM", help="the private key of --tls-cert")


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not 'NAME: VALUE'")
    return name.strip(), value.strip()


def positive(text: str) -> int:
    """Parse a whole number, at least 1; if the text is not a number, argparse shows this function's name."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def probability(text: str) -> float:
    """Parse a number from 0 to 1; if the text is not a number, argparse shows this function's name."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def seconds(text: str) -> float:
    """Parse a positive number of seconds; if the text is not a number, argparse shows this function's name."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def folder(text: str) -> Path:
    """Parse the path of a folder that exists."""
    path = Path(text)
    if not path.is_dir():
        found = f"{path} is a file" if path.exists() else f"there is no folder {path}"
        raise argparse.ArgumentTypeError(f"{found}; expected a folder of pictures")
    return path
