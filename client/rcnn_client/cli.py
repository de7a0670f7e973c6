"""rcnn-detect: pictures in; a table of detections, and pictures with boxes drawn, out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ._client import Detector
from ._detections import Detections
from ._draw import draw_detections
from ._errors import BatchError, RcnnError


def main(argv: Sequence[str] | None = None) -> int:
    """Run rcnn-detect; returns the exit code: 0, or 1 if a picture failed. Wrong usage exits with 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        drawing_paths = _drawing_paths(args.images, args.out)
    except ValueError as error:
        parser.error(str(error))

    errors: dict[int, Exception] = {}
    answers: list[Detections | None] = []
    try:
        with Detector(args.url, args.model) as detector:
            answers.extend(detector.detect(args.images, score_thresh=args.score_thresh))
    except BatchError as error:
        answers = error.results
        errors.update(error.errors)
    except RcnnError as error:
        return _complain(error)

    for index, (image_path, detections) in enumerate(zip(args.images, answers, strict=True)):
        if detections is None:
            _complain(errors[index])
            continue
        print(_table(image_path, detections))
        if index < len(drawing_paths):
            try:
                _write_drawing(image_path, detections, drawing_paths[index])
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                errors[index] = error
                _complain(f"{image_path}: not drawn to {drawing_paths[index]}: {error}")
    return 1 if errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rcnn-detect",
        description="Detects objects in pictures with a detector that a Triton server serves: prints the "
        "label, score and box (x1, y1, x2, y2 in pixels) of each, and draws them if asked.",
        epilog="Exit code: 0 if every picture was answered, 1 if one failed (the reason is on stderr), "
        "2 on wrong usage.",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="PICTURE", help="JPEG, PNG, ... file")
    parser.add_argument(
        "--url",
        default="localhost:8001",
        metavar="HOST:PORT",
        help="gRPC address of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--model", default="faster_rcnn", metavar="NAME", help="detector on the server (default: %(default)s)"
    )
    parser.add_argument(
        "--score-thresh",
        type=probability,
        default=0.5,
        metavar="0..1",
        help="show detections whose score is above this (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="write the picture with its detections drawn; several pictures, or one if PATH is a folder, "
        "are written into that folder as PNG",
    )
    return parser


def probability(text: str) -> float:
    """Parse a number from 0 to 1; argparse shows this function's name where the text is no number."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _drawing_paths(image_paths: list[Path], out: Path | None) -> list[Path]:
    """Where each picture's drawing goes; empty where none is asked for.

    Raises:
        ValueError: no such drawing can be written, or it would overwrite a picture or another drawing.
    """
    if out is None:
        return []
    is_picture = Image.registered_extensions().get(out.suffix.lower()) in Image.SAVE
    if out.is_dir() or len(image_paths) > 1:
        if is_picture and not out.is_dir():
            raise ValueError(f"--out {out}: {len(image_paths)} pictures need a folder, not a file")
        drawing_paths = [out / f"{path.stem}.png" for path in image_paths]
    elif is_picture:
        drawing_paths = [out]
    else:
        raise ValueError(f"--out {out}: expected a folder that exists, or a file as .png or .jpg")
    taken = {path.resolve() for path in image_paths}
    for path in drawing_paths:
        if path.resolve() in taken:
            raise ValueError(f"--out {out}: {path} would overwrite a picture or the drawing of another one")
        taken.add(path.resolve())
    return drawing_paths


def _table(image_path: Path, detections: Detections) -> str:
    count = len(detections)
    lines = [f"{image_path}: {count or 'no'} detection{'' if count == 1 else 's'}"]
    if count:
        width = max(5, *map(len, detections.class_names))
        lines.append(f"  {'label':{width}}  score {'x1':>8} {'y1':>8} {'x2':>8} {'y2':>8}")
    for detection in detections:
        box = " ".join(f"{edge:8.1f}" for edge in detection.box)
        lines.append(f"  {detection.class_name:{width}}  {detection.score:5.3f} {box}")
    return "\n".join(lines)


def _write_drawing(image_path: Path, detections: Detections, drawing_path: Path) -> None:
    with Image.open(image_path) as image:
        drawing = draw_detections(image, detections)
    drawing_path.parent.mkdir(parents=True, exist_ok=True)
    drawing.save(drawing_path)


def _complain(error: object) -> int:
    print(f"rcnn-detect: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
