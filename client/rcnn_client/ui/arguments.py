"""The arguments of rcnn-ui."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..tools.arguments import (
    add_connection_arguments,
    add_in_flight,
    add_timeout,
    add_url,
    add_version,
)

PROG = "rcnn-ui"

_DESCRIPTION = """\
Serves a page on which you choose, drop, paste or photograph a picture and see
what a detector finds in it. Programs post pictures to /detect and get JSON.
Label Studio gets predictions for its tasks from /label-studio/MODEL.
The detectors are those of a Triton server, started for example with
rcnn-serve; pictures are sent to that server and nowhere else."""

_EPILOG = """\
examples:
  rcnn-ui
      then open http://127.0.0.1:8080
  curl --data-binary @photo.jpg 'http://127.0.0.1:8080/detect?score_thresh=0.5'
      the same as JSON; http://127.0.0.1:8080/openapi.json describes it
  openssl rand -hex 32 > token && rcnn-ui --host 0.0.0.0 --token-file token
      for other hosts, which must send the token
  rcnn-ui --port 9090 --label-studio http://localhost:8080 \\
          --label-studio-token-file label-studio.token
      then connect the model http://localhost:9090/label-studio/my_detector in
      Label Studio

Ctrl-C stops it. Exit codes: 0, 1 if it cannot start, 2 on wrong usage.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; wrong ones exit with 2."""
    return make_parser().parse_args(argv)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 65535")
    return port


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(parser)

    page = parser.add_argument_group("the page")
    page.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="listen on this address; 0.0.0.0 for all addresses of this machine, which needs --token-file (default: "
        "%(default)s, for this machine only)",
    )
    page.add_argument(
        "--port", type=_port, default=8080, metavar="PORT", help="0 for any free port (default: %(default)s)"
    )
    page.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with a token that every request for models or detections must contain",
    )

    tasks = parser.add_argument_group("Label Studio")
    tasks.add_argument(
        "--label-studio",
        metavar="ADDRESS",
        help="address of Label Studio, such as http://localhost:8080, from which the pictures of tasks are fetched",
    )
    tasks.add_argument(
        "--label-studio-token-file",
        type=Path,
        metavar="FILE",
        help="file with a token of Label Studio (Account & Settings), of a user who may see the tasks",
    )
    tasks.add_argument(
        "--picture-host",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="other host from which the pictures of tasks may be fetched; may be repeated (default: none)",
    )

    server = parser.add_argument_group("the Triton server")
    add_url(server)
    add_in_flight(server)
    add_timeout(server)
    add_connection_arguments(server)
    return parser
