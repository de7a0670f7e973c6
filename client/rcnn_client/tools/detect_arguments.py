"""The arguments of rcnn-detect."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import (
    STDIO,
    add_connection_arguments,
    add_timeout,
    add_version,
    positive,
    probability,
)

PROG = "rcnn-detect"
OVERLAP = 0.2  # of tiles
IN_FLIGHT = 16
LIVE_IN_FLIGHT = 1  # the next frame is ready when the last is answered, and no frame waits at the server

_DESCRIPTION = """\
Finds objects in pictures and videos, and prints the class, score (0 to 1) and
box (x1, y1, x2, y2 in pixels) of each. A detection server does the work
(NVIDIA Triton, started for example with rcnn-serve). This command only sends
it the pictures, so it needs no GPU and no weights."""

_EPILOG = """\
examples:
  rcnn-detect photo.jpg --out boxed.png
      a table, and the picture with its boxes drawn
  rcnn-detect photos/ --out drawn/ --score-thresh 0.7
      every picture of a folder and its subfolders
  rcnn-detect photos/ --json found.jsonl --resume
      one line of JSON per picture; continues where it stopped
  rcnn-detect 'day*/*.png' --coco results.json --annotations instances.json
      COCO results, with the ids of an annotation file
  rcnn-detect clip.mp4 --classes person,dog --out frames/
      only some classes; every frame of a video
  rcnn-detect aerial.tif --tiles 800x800 --out boxed.png
      small objects in a large picture
  rcnn-detect clip.mp4 --track --out tracked.mp4 --json tracked.jsonl
      a drawn video; every object keeps its number
  rcnn-detect rtsp://camera/stream --live --track --json -
      until Ctrl-C, without falling behind
  cat photo.jpg | rcnn-detect - --out - > boxed.png

exit codes:
  0    every picture was answered
  1    a picture failed (stderr says which and why; the others were still
       sent), or the server failed
  2    wrong usage
  130  interrupted with Ctrl-C; the output up to that point is complete
"""


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Parse the arguments; wrong ones exit with 2. Also returns the parser, to report errors found later."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.url = args.url or ["localhost:8001"]
    args.in_flight = args.in_flight or (LIVE_IN_FLIGHT if args.live and not args.tile_hw else IN_FLIGHT)
    if [args.out, args.json, args.coco].count(STDIO) > 1:
        parser.error("only one of --out, --json and --coco can write to stdout (-)")
    if args.resume and args.json in (None, STDIO):
        parser.error("--resume needs --json FILE, the results of the earlier run")
    if args.annotations and args.coco is None:
        parser.error("--annotations only gives --coco its ids; add --coco FILE, or leave it out")
    if args.tile_hw is None and {args.overlap, args.merge, args.whole} != {None}:
        parser.error("--overlap, --merge and --no-whole apply only to tiles; add --tiles, or leave them out")
    return parser, args


def tile_sides(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH, both at least 1."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a height and width in pixels, such as 800x800")
    return int(height), int(width)


def _overlap(text: str) -> float:
    share = probability(text)
    if share == 1:
        raise argparse.ArgumentTypeError(
            "1 would never advance to the next tile; expected less, for example 0.2"
        )
    return share


def _class_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def make_parser() -> argparse.ArgumentParser:
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
        "camera:N or rtsp://... (these need the extra [video]); - for a picture on stdin",
    )

    add_version(parser)

    what = parser.add_argument_group("what is kept")
    what.add_argument(
        "--score-thresh",
        type=probability,
        default=0.5,
        metavar="0..1",
        help="keep detections whose score is above this (default: %(default)s, which suits human readers; in Python the "
        "default is the model's own threshold, 0.05 in torchvision)",
    )
    what.add_argument(
        "--classes",
        type=_class_names,
        metavar="NAME,...",
        help="keep only these classes (default: all; an unknown name prints the list of names)",
    )

    what.add_argument(
        "--mask-thresh",
        type=probability,
        metavar="0..1",
        help="for a Mask R-CNN: pixels whose probability is above this belong to a mask (default: 0.5)",
    )

    tiles = parser.add_argument_group("small objects in large pictures")
    tiles.add_argument(
        "--tiles",
        dest="tile_hw",
        type=tile_sides,
        metavar="HEIGHTxWIDTH",
        help="detect in overlapping tiles of this size in pixels, for example 800x800, and merge their detections as "
        "SAHI does. --in-flight and --timeout-s then apply to tiles",
    )
    tiles.add_argument(
        "--overlap",
        type=_overlap,
        metavar="0..1",
        help=f"overlap of neighbouring tiles as a share of the tile, less than 1 (default: {OVERLAP})",
    )
    tiles.add_argument(
        "--merge",
        choices=("greedy_nmm", "nmm", "nms"),
        help="how to merge the detections of one object: greedy_nmm makes one box around all that match the best one, "
        "nmm also around those that match these, nms keeps only the best one (default: as SAHI, nms if "
        "--score-thresh is below 0.1 or the model returns keypoints, and greedy_nmm otherwise)",
    )
    tiles.add_argument(
        "--no-whole",
        dest="whole",
        action="store_const",
        const=False,
        help="do not send the whole picture as well, in which the large objects are found",
    )

    video = parser.add_argument_group("videos, cameras and streams")
    video.add_argument(
        "--track",
        action="store_true",
        help="give each object an id that it keeps while it is seen (track_id in the JSON). An object gets an id when its "
        "score is above --score-thresh, and keeps it as long as its score is above 0.1",
    )
    video.add_argument(
        "--live",
        action="store_true",
        help="drop frames that arrive while earlier ones are still at the server, instead of queueing them; the number "
        "of dropped frames is printed at the end. A file is then read at its own speed",
    )

    where = parser.add_argument_group(
        "what is written (a table on stdout, unless --json, --coco or --out - is given)"
    )
    where.add_argument(
        "--out",
        metavar="PATH",
        help="draw the detections on the pictures: a folder, a file for a single picture or video, or - for stdout "
        "(PNG). In a folder, JPEGs and video frames are written as JPEG, all others as PNG",
    )
    where.add_argument(
        "--json",
        metavar="FILE",
        help="write a line of JSON per picture: file, frame of a video, and detections (with masks and keypoints, if "
        "the model returns them) or error; - for stdout",
    )
    where.add_argument(
        "--resume",
        action="store_true",
        help="continue the --json file of an interrupted run of the same command: pictures that were answered are "
        "skipped, pictures that failed are sent again",
    )
    where.add_argument(
        "--coco", metavar="FILE", help="write detections in COCO's results format; - for stdout"
    )
    where.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO instances file that gives --coco its image ids (by file name) and category ids (by class "
        "name). Without it, image ids are 1, 2, ... in the order of the pictures, and category ids are the "
        "model's labels",
    )

    server = parser.add_argument_group("the server")
    server.add_argument(
        "--url",
        action="append",
        metavar="HOST:PORT",
        help="gRPC address of the server; may be repeated, the servers share the work (default: localhost:8001)",
    )
    server.add_argument(
        "--model", default="faster_rcnn", metavar="NAME", help="detector on the server (default: %(default)s)"
    )
    server.add_argument(
        "--in-flight",
        type=positive,
        metavar="N",
        help=f"how many pictures are at the server at the same time (default: {IN_FLIGHT}; with --live "
        f"{LIVE_IN_FLIGHT})",
    )
    add_timeout(server)
    add_connection_arguments(server)
    return parser
