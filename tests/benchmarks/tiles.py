"""COCO AP and time in a large picture, for `detect`, and for `detect_tiled` with one tile or many tiles in flight.

    python tests/benchmarks/tiles.py                              # starts a server with the sample
    python tests/benchmarks/tiles.py --url gpu-1:8001 --model digits

The picture is composed of the sample's held-out pictures, so the served model has to detect digits. The ways take
turns; a time is the median over the turns, from the bytes of a JPEG to the merged detections, or with --decoded from its
pixels.
"""

import argparse
import contextlib
import io
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image
from rcnn_backend.server.access import Access
from rcnn_backend.server.local_server import running_server
from rcnn_client import Detections, Detector, ImageInput
from rcnn_client._merge import MergeMethod
from rcnn_client.tools.coco_file import box_record
from rcnn_client.tools.coco_score import score
from rcnn_client.tools.detect_arguments import tile_sides
from rcnn_export.digits.backgrounds import draw_background
from rcnn_export.digits.compose import CLASS_NAMES, DigitPicture, compose_picture
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
SPLIT = "held-out"


@dataclass
class LargePicture:
    """A picture with annotations: uint8 [H, W, 3]; float32 [D, 4] left, top, right, bottom; int64 [D]."""

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    def encode(self) -> bytes:
        """The picture as a JPEG."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, "JPEG", quality=95, subsampling=0)
        return buffer.getvalue()


@dataclass
class Way:
    """One way to detect in the picture, with its measurements."""

    name: str
    detect: Callable[[ImageInput], Detections]
    times_s: list[float] = field(default_factory=list)
    found: Detections | None = None


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a running server (default: one is started)")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="for the server that is started")
    parser.add_argument("--fused", choices=("auto", "on", "off"), default="off", help="as for rcnn-serve")
    parser.add_argument("--size", type=tile_sides, default=(4000, 6000), metavar="HEIGHTxWIDTH")
    parser.add_argument("--tiles", type=tile_sides, default=(384, 384), metavar="HEIGHTxWIDTH")
    parser.add_argument("--overlap", type=float, default=0.4)
    parser.add_argument("--merge", choices=get_args(MergeMethod), help="as for rcnn-detect")
    parser.add_argument(
        "--score-thresh", type=float, default=0.05, help="(default: %(default)s, which is torchvision's)"
    )
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument(
        "--decoded", action="store_true", help="start from the picture's pixels, not from a JPEG"
    )
    parser.add_argument("--transport", choices=("grpc", "shm"), default="grpc", help="of the client")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    picture = compose_large_picture(options.size)
    with contextlib.ExitStack() as stack:
        url = options.url
        if url is None:
            models = [options.model, f"{options.model}_pixels"]
            access = Access(shared_memory=options.transport == "shm")
            server = running_server(options.repository, models, fused=options.fused, access=access)
            url = stack.enter_context(server).grpc_url
        detector = stack.enter_context(
            Detector(url, options.model, timeout_s=600, transport=options.transport)
        )
        ways = make_ways(
            detector, options.tiles, options.overlap, options.in_flight, options.merge, options.score_thresh
        )
        measure(ways, picture.pixels if options.decoded else picture.encode(), options.turns)
    console = Console(width=110)
    console.print(report(ways, picture))
    console.print(f"command: python {shlex.join(sys.argv)}", markup=False, soft_wrap=True)
    return 0


def compose_large_picture(size_hw: Sequence[int]) -> LargePicture:
    """Held-out pictures side by side in rows, on one background."""
    height, width = size_hw
    pixels = draw_background(SPLIT, (height, width), np.random.default_rng(0)).copy()
    boxes, labels = [], []
    left = top = bottom = 0
    for part in _held_out_pictures():
        part_height, part_width = part.pixels.shape[:2]
        if left + part_width > width:
            left, top = 0, bottom
        if top + part_height > height or part_width > width:
            break
        pixels[top : top + part_height, left : left + part_width] = part.pixels
        boxes.append(part.boxes + np.tile([left, top], 2))
        labels.append(part.labels)
        left, bottom = left + part_width, max(bottom, top + part_height)
    return LargePicture(pixels, np.concatenate(boxes).astype(np.float32), np.concatenate(labels))


def _held_out_pictures() -> Iterator[DigitPicture]:
    index = 0
    while True:
        yield compose_picture(SPLIT, index)
        index += 1


def make_ways(
    detector: Detector,
    tile_hw: Sequence[int],
    overlap: float,
    in_flight: int,
    merge: MergeMethod | None,
    score_thresh: float,
) -> list[Way]:
    """Detection in the whole picture, in one tile after the other, and in several tiles at the same time."""

    def detect_tiled(data: ImageInput, in_flight: int) -> Detections:
        return detector.detect_tiled(
            data, tile_hw, overlap, merge=merge, in_flight=in_flight, score_thresh=score_thresh
        )

    return [
        Way("detect", lambda data: detector.detect(data, score_thresh=score_thresh)),
        Way("detect_tiled, 1 in flight", lambda data: detect_tiled(data, 1)),
        Way(f"detect_tiled, {in_flight} in flight", lambda data: detect_tiled(data, in_flight)),
    ]


def measure(ways: list[Way], image: ImageInput, turns: int) -> None:
    """Times each way, in turns; the first turn is not counted."""
    for turn in range(turns + 1):
        for way in ways:
            started = time.perf_counter()
            way.found = way.detect(image)
            if turn:
                way.times_s.append(time.perf_counter() - started)


def average_precision(picture: LargePicture, found: Detections) -> float:
    """COCO's AP50:95 of boxes."""
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASS_NAMES, start=1)]
    truth = [
        box_record(0, int(label), box.tolist())
        for box, label in zip(picture.boxes, picture.labels, strict=True)
    ]
    records = [box_record(0, each.label, list(each.box), score=each.score) for each in found]
    return score([{"id": 0}], categories, truth, records).ap


def report(ways: list[Way], picture: LargePicture) -> Table:
    """A row for each way."""
    height, width = picture.pixels.shape[:2]
    table = Table(title=f"{height}x{width} pixels, {len(picture.boxes)} digits")
    for column in ("", "AP50:95", "detections", "seconds", "fastest", "slowest"):
        table.add_column(column, justify="right" if column else "left")
    for way in ways:
        assert way.found is not None
        seconds = statistics.median(way.times_s), min(way.times_s), max(way.times_s)
        numbers = [f"{each:.2f}" for each in seconds]
        table.add_row(way.name, f"{average_precision(picture, way.found):.3f}", str(len(way.found)), *numbers)
    return table


if __name__ == "__main__":
    sys.exit(main())
