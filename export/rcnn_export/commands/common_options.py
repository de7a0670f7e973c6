"""The options that rcnn-export, rcnn-train and rcnn-verify have in common."""

import argparse
import math
from importlib.metadata import version
from pathlib import Path


def add_version(parser: argparse.ArgumentParser) -> None:
    """Adds ``--version``, which prints the version of the installed package."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('rcnn-export')}")


def add_weights_options(group: argparse._ActionsContainer, default: str) -> None:
    """Adds ``--weights-key`` and ``--batch-norm-eps``; ``default`` says where the eps comes from by default."""
    group.add_argument(
        "--weights-key",
        metavar="KEY",
        help="which state dict to use from a file that contains several, such as model_ema; dots separate nested keys "
        "(default: the model's, not its average)",
    )
    group.add_argument(
        "--batch-norm-eps",
        type=_eps,
        metavar="EPS",
        help="the eps of every batch normalisation; 0 for a fasterrcnn_resnet50_fpn fine-tuned from torchvision's COCO_V1 "
        f"and saved as a state dict (default: {default})",
    )


def add_annotations(group: argparse._ActionsContainer, purpose: str) -> None:
    """Adds ``--annotations``, two paths; ``purpose`` says what they are for."""
    group.add_argument(
        "--annotations",
        nargs=2,
        type=Path,
        metavar=("ANNOTATIONS", "PICTURES"),
        help=f"a COCO instances file and the folder of its pictures; {purpose}",
    )


def _eps(text: str) -> float:
    try:
        eps = float(text)
    except ValueError:
        eps = math.nan
    if not 0 <= eps < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not an eps, expected a number, 0 or more")
    return eps
