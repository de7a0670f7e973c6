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
        epilog="Several GPUs, or several processes a GPU for a light detector: "
        "torchrun --nproc-per-node N -m rcnn_export.commands.train ...",
    )
    add_version(parser)
    files = ("ANNOTATIONS", "PICTURES")
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument("--train", nargs=2, type=Path, metavar=files, help="COCO instances file, its folder")
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
        help="mirror every second picture, and let keypoints named left and right change places",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        help="torchvision builder of a Faster, Mask or Keypoint R-CNN, or package.module:function (default: "
        f"{DEFAULT_MODEL}; with --sample a light Faster R-CNN)",
    )
    model.add_argument(
        "--weights",
        help="where to start: a torchvision weights name, a file as for rcnn-export, or random; predictors start anew "
        "if their classes or keypoints are others, and so does a mask or keypoint head that the weights lack (default: DEFAULT, torchvision's "
        "best; random with --sample or for a function of yours, which starts as the function builds it)",
    )
    add_weights_options(model, default="as the weights record it, else as the model has it")
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, required=True, help="folder for weights, metrics and checkpoint")
    run.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in --out; with more --epochs than before, the "
        "learning rate goes on along the longer run's curve",
    )
    default = "(default: %(default)s)"
    run.add_argument("--epochs", type=int, default=12, help=f"passes over the pictures {default}")
    run.add_argument(
        "--batch-size", type=int, default=16, help=f"pictures a step, over all processes {default}"
    )
    run.add_argument(
        "--learning-rate", type=float, help="of AdamW (default: 1e-3 from random weights, else 1e-4)"
    )
    run.add_argument("--weight-decay", type=float, default=0.05, help=f"of AdamW {default}")
    run.add_argument("--device", help="such as cuda or cpu (default: cuda where there is a GPU, else cpu)")
    run.add_argument("--no-amp", action="store_true", help="train in FP32 on a GPU too")
    workers = min(len(os.sched_getaffinity(0)), 16)
    run.add_argument(
        "--workers",
        type=int,
        default=workers,
        help="that read pictures, for each process (default: as many as CPUs, at most 16; here %(default)s)",
    )
    run.add_argument("--seed", type=int, default=0, help=f"of the order and the mirroring {default}")
    arguments = parser.parse_args(argv)
    if bool(arguments.train) != bool(arguments.val):
        parser.error("--train and --val go together; --sample brings its own held-out pictures")
    if min(arguments.epochs, arguments.batch_size, *arguments.sample_pictures) < 1:
        parser.error("--epochs, --batch-size and --sample-pictures start at 1")
    return arguments
