"""The arguments of rcnn-eval."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import SCORE_THRESH, add_in_flight, add_server_arguments, add_version, folder, probability

PROG = "rcnn-eval"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; wrong ones exit with 2."""
    return make_parser().parse_args(argv)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Runs every picture of a COCO annotation file through a detector that a Triton server "
        "serves, and prints COCO's average precision, over all classes and by class: of boxes, and also of masks and "
        "keypoints if the model and the file have them. Classes are matched to categories by name.",
        epilog="Exit code: 0 if every picture was answered, 1 if one failed (the reason is on stderr; the "
        "scores are for the others), 2 on wrong usage.",
    )
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS", help="COCO instances file (JSON)")
    parser.add_argument(
        "images",
        type=folder,
        metavar="FOLDER",
        help="folder to which the file names in ANNOTATIONS are relative",
    )
    add_version(parser)
    add_server_arguments(parser)
    parser.add_argument(
        "--against",
        metavar="HOST:PORT/MODEL",
        help="a second model to compare with: HOST:PORT/MODEL, or only HOST:PORT (the same model on another "
        "server), or only MODEL (another model on the same server)",
    )
    parser.add_argument(
        "--score-thresh",
        type=probability,
        default=SCORE_THRESH,
        metavar="0..1",
        help="use detections whose score is above this (default: %(default)s; torchvision's published AP uses 0.05)",
    )
    add_in_flight(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("rcnn-eval"),
        metavar="FOLDER",
        help="output folder: precision_recall.png (and _segm, _keypoints), scores.json, results.json (COCO results), and with --against "
        "results_against.json and the most different pictures under differences/ (default: %(default)s)",
    )
    return parser
