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
        "says stage by stage how far they differ. Each stage runs alone, on torchvision's own input, and end to end. "
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
        help="how many pictures go together, in turn (default: 1 3 8)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="",
        help="which of the engine files, where there are several: a plan has its ONNX beside it (default: the one "
        "that is served)",
    )
    parser.add_argument(
        "--bisect",
        action="store_true",
        help="when a TensorRT plan diverges, name the first layer whose output differs from ONNX "
        "Runtime's; builds the plan again with every layer's output",
    )
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="of an INT8 export, instead of comparing it: rank its layers by the error of each when it alone is INT8, on "
        "the first 3 pictures; rcnn-export --keep-float keeps those that are named in FP32",
    )
    add_annotations(
        parser,
        "for --sensitivity: rank the layers by the AP that each loses; runs all pictures for each layer",
    )
    parser.add_argument(
        "--server", metavar="HOST:PORT", help="compare also the answers of the server at this gRPC address"
    )
    arguments = parser.parse_args(argv)
    if arguments.annotations and not arguments.sensitivity:
        parser.error("--annotations is for --sensitivity; rcnn-eval measures the AP of a served detector")
    return arguments


def _batch_size(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MAX_BATCH):
        raise argparse.ArgumentTypeError(f"{text!r} is no batch size, expected 1 to {MAX_BATCH}")
    return int(text)
