"""The arguments of rcnn-detect."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .. import TLSConfig
from .console import positive, probability
from .detect_inputs import STDIO

PROG = "rcnn-detect"

_DESCRIPTION = """\
Finds objects in pictures and videos, and tells for each its label, score (0 to 1) and box
(x1, y1, x2, y2 in pixels). The finding is done by a detection server (NVIDIA Triton, started for
example with rcnn-serve); this command sends it the pictures and needs no GPU and no weights."""

_EPILOG = """\
examples:
  rcnn-detect photo.jpg --out boxed.png             a table, and the picture with its boxes drawn
  rcnn-detect photos/ --out drawn/ --threshold 0.7  every picture of a folder and its subfolders
  rcnn-detect photos/ --json found.jsonl --resume   one line of JSON a picture; goes on where it stopped
  rcnn-detect 'day*/*.png' --coco results.json --annotations instances.json
  rcnn-detect clip.mp4 --classes person,dog --out frames/
  rcnn-detect camera:0 --json -                     until Ctrl-C
  cat photo.jpg | rcnn-detect - --out - > boxed.png

exit codes:
  0  every picture was answered
  1  a picture failed (stderr names it and says why; the others went on), or the server did
  2  wrong usage
  130  interrupted with Ctrl-C; what was written is complete up to there
"""


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Parse the arguments; wrong ones exit with 2. Returns the parser, too, for what it cannot see."""
    parser = _parser()
    args = parser.parse_args(argv)
    args.url = args.url or ["localhost:8001"]
    if [args.out, args.json, args.coco].count(STDIO) > 1:
        parser.error("only one of --out, --json and --coco can write to stdout (-)")
    if args.resume and args.json in (None, STDIO):
        parser.error("--resume needs --json FILE, which tells what was done before")
    if args.annotations and args.coco is None:
        parser.error("--annotations gives the ids for --coco, which is missing")
    return parser, args


def tls_config(args: argparse.Namespace) -> TLSConfig | None:
    """The certificates asked for; None: not encrypted."""
    if not (args.tls or args.tls_ca or args.tls_cert or args.tls_key):
        return None
    return TLSConfig(args.tls_ca, args.tls_cert, args.tls_key)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not 'NAME: VALUE'")
    return name.strip(), value.strip()


def _class_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage="%(prog)s PICTURE [PICTURE ...] [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="PICTURE",
        help="picture file (JPEG, PNG, ...); folder; pattern in quotes ('*.jpg', '**/*.png'); video file, "
        "camera:N or rtsp://... (these need OpenCV: pip install 'rcnn-client[video]'); - for a picture on "
        "stdin",
    )

    what = parser.add_argument_group("what is kept")
    what.add_argument(
        "--threshold",
        type=probability,
        default=0.5,
        metavar="0..1",
        help="detections whose score is above this (default: %(default)s)",
    )
    what.add_argument(
        "--classes",
        type=_class_names,
        metavar="NAME,...",
        help="only these classes (default: all; a name that the model does not know gets the list of names)",
    )

    where = parser.add_argument_group(
        "what is written (a table to stdout, unless --json, --coco or - says else)"
    )
    where.add_argument(
        "--out",
        metavar="PATH",
        help="pictures with their detections drawn: a folder, a file for a single picture, - for stdout (PNG). In "
        "a folder, JPEGs and video frames become JPEGs, the others PNGs",
    )
    where.add_argument(
        "--json",
        metavar="FILE",
        help="a line of JSON for each picture: file, frame of a video, and detections or error; - for stdout",
    )
    where.add_argument(
        "--resume",
        action="store_true",
        help="go on with the --json file of an interrupted run of the same command: pictures answered there are "
        "skipped, those that failed are tried again",
    )
    where.add_argument("--coco", metavar="FILE", help="detections in COCO's results format; - for stdout")
    where.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO instances file that gives --coco its image ids (by file name) and category ids (by class "
        "name). Without it, image ids are 1, 2, ... in the order of the pictures, and category ids the model's "
        "labels",
    )

    server = parser.add_argument_group("the server")
    server.add_argument(
        "--url",
        action="append",
        metavar="HOST:PORT",
        help="its gRPC address; several --url share the work (default: localhost:8001)",
    )
    server.add_argument(
        "--model", default="faster_rcnn", metavar="NAME", help="detector on it (default: %(default)s)"
    )
    server.add_argument(
        "--in-flight",
        type=positive,
        default=16,
        metavar="N",
        help="pictures at the server at once (default: %(default)s)",
    )
    server.add_argument(
        "--timeout-s",
        type=float,
        default=60.0,
        metavar="S",
        help="how long a picture may take, in seconds (default: %(default)g)",
    )
    server.add_argument(
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="sent with every call, as a token; may be repeated",
    )
    server.add_argument("--tls", action="store_true", help="encrypted; any of the next three says so, too")
    server.add_argument(
        "--tls-ca",
        type=Path,
        metavar="PEM",
        help="who may have signed the server's certificate (default: the usual public authorities)",
    )
    server.add_argument(
        "--tls-cert", type=Path, metavar="PEM", help="your own certificate, if it asks for one"
    )
    server.add_argument("--tls-key", type=Path, metavar="PEM", help="the private key of --tls-cert")
    return parser
