"""The arguments of ``rcnn-export``."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rcnn_export.commands.choices import (
    CALIBRATION_METHODS,
    DEFAULT_MODEL,
    DEFAULT_MODELS,
    ENGINES,
    EXAMPLE_SHAPES,
    NUM_CALIBRATION_PICTURES,
    PRECISIONS,
    TORCHVISION_MODELS,
)
from rcnn_export.commands.common_options import add_annotations, add_version, add_weights_options

if TYPE_CHECKING:
    from rcnn_backend.engines.profiles import ShapeRange


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments; --help, --version and wrong usage end the program."""
    parser = argparse.ArgumentParser(
        prog="rcnn-export",
        description="Exports a torchvision detector to a Triton model repository.",
        epilog="Example: rcnn-export --model fasterrcnn_resnet50_fpn --weights my.pth --labels labels.txt "
        "--name my_detector",
    )
    add_version(parser)
    parser.add_argument(
        "family",
        nargs="?",
        choices=list(DEFAULT_MODELS),
        help="the model's family; a model of another family is refused (default: the model's own family)",
    )
    parser.add_argument(
        "--model",
        help=f"one of {', '.join(TORCHVISION_MODELS)}, or package.module:function "
        f"returning a FasterRCNN, MaskRCNN or KeypointRCNN (default: {DEFAULT_MODEL}, or the default of the family)",
    )
    parser.add_argument(
        "--weights",
        default="DEFAULT",
        help="a file with a state dict (torch.save or safetensors, alone or in a training checkpoint), a torchvision "
        "weights name such as COCO_V1, builder for the weights that a function of yours gives its detector, or random to "
        "try an export without weights (default: %(default)s, torchvision's best)",
    )
    add_weights_options(parser, default="as recorded in the weights, else the model's own")
    parser.add_argument(
        "--num-classes",
        type=int,
        help="number of classes, including the background (default: as in the weights or labels)",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        help="text file with one class name per line, without the background (default: the names of published weights, "
        "else class_1, class_2, ...)",
    )
    parser.add_argument(
        "--keypoints",
        type=Path,
        help="text file with one keypoint name per line, for a Keypoint R-CNN (default: COCO's names if there are 17 "
        "keypoints, else numbers from 0)",
    )
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path("model_repository"),
        help="the model repository to write into (default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="onnx: runs anywhere, in OpenVINO on a CPU and in ONNX Runtime on a GPU; cudnn: PyTorch with "
        "fused convolutions, for any NVIDIA GPU from compute capability 8.0 on; aoti: compiled by PyTorch for this "
        "machine's GPU, or CPU if it has none; tensorrt: built by TensorRT for this machine's GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="precision of the networks; boxes and scores are always computed in fp32; int8 needs --calibrate "
        "(default: %(default)s)",
    )
    int8 = parser.add_argument_group("INT8")
    int8.add_argument(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="folder of pictures like those that will be sent; the ranges of the INT8 numbers are measured on them",
    )
    int8.add_argument(
        "--calibration-pictures",
        type=_count,
        metavar="N",
        help=f"the largest number of pictures to use from the folder (default: {NUM_CALIBRATION_PICTURES})",
    )
    int8.add_argument(
        "--calibration-method",
        choices=CALIBRATION_METHODS,
        help=f"how a range is computed from the measured values (default: {CALIBRATION_METHODS[0]})",
    )
    int8.add_argument(
        "--keep-float",
        nargs="+",
        default=[],
        metavar="LAYER",
        help="layers that stay in fp32, or in fp16 with --engine cudnn, such as those that rcnn-verify --sensitivity lists "
        "first; a module's name means all its layers",
    )
    int8.add_argument(
        "--most-ap-loss",
        type=_points,
        metavar="POINTS",
        help="keep as many of the costliest layers in fp32 as needed so that AP50:95 on --annotations is at most this many "
        "points (of 100) below fp32, for boxes and for masks or keypoints",
    )
    add_annotations(int8, "for --most-ap-loss; use other pictures than those of --calibrate")
    plans = parser.add_argument_group("TensorRT plans")
    plans.add_argument(
        "--shapes",
        type=_shapes,
        action="append",
        default=[],
        metavar="BxHxW,BxHxW,BxHxW",
        help=f"the smallest, the best and the largest batch of padded pictures, such as {EXAMPLE_SHAPES}; give it once "
        "for each profile (default: one profile for the sizes that the detector's transform makes, up to 8 pictures)",
    )
    plans.add_argument(
        "--version-compatible", action="store_true", help="the plans run on later versions of TensorRT too"
    )
    plans.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="the plans run on every GPU from Ampere on, but slower",
    )
    plans.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="MAJOR.MINOR",
        help="build for GPUs with this compute capability, on a machine without such a GPU; TensorRT-RTX only "
        "(default: this machine's GPU)",
    )
    parser.add_argument("--name", help="the served model's name (default: the family)")
    arguments = parser.parse_intermixed_args(argv)  # the family may be at any position
    arguments.model = arguments.model or DEFAULT_MODELS.get(arguments.family, DEFAULT_MODEL)
    return arguments


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pictures, expected 1 or more")
    return int(text)


def _points(text: str) -> float:
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    if not 0 <= points < 100:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a loss in points of AP, expected 0 to 100, such as 0.5"
        )
    return points


def _shapes(text: str) -> "ShapeRange":
    from rcnn_export.engines.plan_shapes import parse_shapes

    try:
        return parse_shapes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
