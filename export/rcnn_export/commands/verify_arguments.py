"""The arguments of ``rcnn-verify``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rcnn_export.commands.choices import ENGINES, MAX_BATCH
from rcnn_export.commands.common_options import add_annotations, add_version, add_weights_options


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments; --help, --version and wrong usage end the program."""
    parser = argparse.ArgumentParser(
        prog="rcnn-verify",
        description="Runs pictures through torchvision (eager, FP32, CPU) and through an exported detector, and "
        "reports how far they differ at each stage. Each stage runs alone, on torchvision's own input, and end to end. "
        "Exit code 0: every stage holds. 1: a stage diverges. 2: the comparison could not run.",
    )
    add_version(parser)
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path("model_repository"),
        help="the model repository (default: %(default)s)",
    )
    parser.add_argument(
        "--name", default="faster_rcnn", help="the served model's name (default: %(default)s)"
    )
    parser.add_argument("--model", help="as for rcnn-export (default: as exported)")
    parser.add_argument("--weights", help="as for rcnn-export (default: as exported)")
    add_weights_options(parser, default="as exported")
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="picture files, or folders of them (default: 12 made from photos, 64x16 to 1333x1000 pixels, which take "
        "a ResNet50-FPN 1 to 2 minutes on two cores)",
    )
    parser.add_argument(
        "--batch",
        type=_batch_size,
        nargs="+",
        default=[1, 3, 8],
        metavar="SIZE",
        help="batch sizes, used in turn (default: 1 3 8)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="",
        help="which engine file to verify if there are several, such as a plan and its ONNX graph (default: the one "
        "that is served)",
    )
    parser.add_argument(
        "--bisect",
        action="store_true",
        help="if a TensorRT plan diverges, name the first layer whose output differs from ONNX "
        "Runtime's; this builds the plan again with every layer's output",
    )
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="instead of comparing, rank the layers of an INT8 export by the error that each causes when only it is INT8, "
        "on the first 3 pictures; rcnn-export --keep-float keeps layers in FP32",
    )
    add_annotations(
        parser,
        "for --sensitivity: rank the layers by the AP that each loses; this runs all pictures for each layer",
    )
    parser.add_argument(
        "--server", metavar="HOST:PORT", help="also compare the answers of the server at this gRPC address"
    )
    arguments = parser.parse_args(argv)
    if arguments.annotations and not arguments.sensitivity:
        parser.error("--annotations is for --sensitivity; rcnn-eval measures the AP of a served detector")
    return arguments


def _batch_size(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MAX_BATCH):
        raise argparse.ArgumentTypeError(f"{text!r} is not a batch size, expected 1 to {MAX_BATCH}")
    return int(text)
