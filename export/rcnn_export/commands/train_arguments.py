"""The arguments of ``rcnn-train``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rcnn_export.commands.choices import DEFAULT_MODEL
from rcnn_export.commands.common_options import add_version, add_weights_options


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments; --help, --version and wrong usage end the program."""
    parser = argparse.ArgumentParser(
        prog="rcnn-train",
        description="Trains or fine-tunes a detector on a COCO-format dataset or on the sample digits.",
        epilog="For several GPUs, or several processes per GPU for a light detector: "
        "torchrun --nproc-per-node N -m rcnn_export.commands.train ...",
    )
    add_version(parser)
    files = ("ANNOTATIONS", "PICTURES")
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--train", nargs=2, type=Path, metavar=files, help="a COCO instances file and its folder"
    )
    source.add_argument("--sample", choices=["digits"], help="compose the sample dataset instead")
    data.add_argument("--val", nargs=2, type=Path, metavar=files, help="the same for evaluation")
    data.add_argument(
        "--sample-pictures",
        type=int,
        nargs=2,
        metavar=("TRAIN", "VAL"),
        default=(12000, 500),
        help="how many pictures --sample composes (default: 12000 500)",
    )
    data.add_argument(
        "--horizontal-flip",
        action="store_true",
        help="mirror half of the pictures at random, and swap keypoints named left and right",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        help="torchvision builder of a Faster, Mask or Keypoint R-CNN, or package.module:function (default: "
        f"{DEFAULT_MODEL}; a light Faster R-CNN with --sample)",
    )
    model.add_argument(
        "--weights",
        help="initial weights: a torchvision weights name, a file as for rcnn-export, or random; predictors are "
        "initialised again if their classes or keypoints differ, and so is a mask or keypoint head that the weights lack "
        "(default: DEFAULT, torchvision's best; random with --sample or for a function of yours, whose detector starts as "
        "the function builds it)",
    )
    add_weights_options(model, default="as recorded in the weights, else the model's own")
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, required=True, help="folder for weights, metrics and checkpoint")
    run.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in --out; with more --epochs than before, the "
        "learning rate follows the longer run's schedule from there on",
    )
    default = "(default: %(default)s)"
    run.add_argument("--epochs", type=int, default=12, help=f"passes over the pictures {default}")
    run.add_argument(
        "--batch-size", type=int, default=16, help=f"pictures per step, over all processes {default}"
    )
    run.add_argument(
        "--learning-rate", type=float, help="for AdamW (default: 1e-3 from random weights, else 1e-4)"
    )
    run.add_argument("--weight-decay", type=float, default=0.05, help=f"for AdamW {default}")
    run.add_argument("--device", help="such as cuda or cpu (default: cuda if there is a GPU, else cpu)")
    run.add_argument("--no-amp", action="store_true", help="train in FP32 on a GPU too")
    workers = min(len(os.sched_getaffinity(0)), 16)
    run.add_argument(
        "--workers",
        type=int,
        default=workers,
        help="workers that read pictures, for each process (default: one per CPU, at most 16; here %(default)s)",
    )
    run.add_argument("--seed", type=int, default=0, help=f"for the order and the mirroring {default}")
    arguments = parser.parse_args(argv)
    if bool(arguments.train) != bool(arguments.val):
        parser.error("--train and --val go together; --sample has its own held-out pictures")
    if min(arguments.epochs, arguments.batch_size, *arguments.sample_pictures) < 1:
        parser.error("--epochs, --batch-size and --sample-pictures must be at least 1")
    return arguments
