"""How padding to a few sizes changes the detections: each picture is detected alone, with exact and with padded size.

    python tests/benchmarks/padding.py

A pair is two detections with the same label and an IoU above 0.9. After per-class NMS no two boxes can both pair with
a third, so the pairs are one to one.
"""

import argparse
import dataclasses
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.operators.openvino_runtime import VERSION
from rcnn_backend.operators.sizes import padded_size_hw, resized_size_hw
from rcnn_backend.pipeline import Pipeline
from rcnn_export.digits.compose import compose_picture
from rcnn_export.verify.matching import Rows, iou
from rcnn_export.verify.sample_pictures import sample_pictures
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
PAIR_IOU = 0.9
SEEN_IOU = 0.5
SCORE_THRESHOLDS = (0.05, 0.5)


def main() -> int:
    """Prints how the sizes change, and a table of how the detections change, above each score threshold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--name", default="digits", help="the detector (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=100, help="number of pictures (default: %(default)s)")
    parser.add_argument(
        "--photos", action="store_true", help="use parts of photos instead of pictures of handwritten digits"
    )
    parser.add_argument(
        "--sizes",
        default="384x576,576x384,384x768,768x384",
        help="heights and widths to pad to (default: %(default)s)",
    )
    arguments = parser.parse_args()
    sizes_hw = [[int(side) for side in size.split("x")] for size in arguments.sizes.split(",")]
    images = make_pictures(arguments.pictures, arguments.photos)
    exact = Pipeline.load(arguments.repository, arguments.name)
    padded = dataclasses.replace(
        exact,
        preprocess_parameters=dataclasses.replace(exact.preprocess_parameters, padded_sizes_hw=sizes_hw),
    )

    console = Console()
    for title, pipeline in (("exact", exact), ("padded", padded)):
        sizes = [input_size_hw(image, pipeline) for image in images]
        megapixels = sum(height * width for height, width in sizes) / 1e6
        console.print(f"{title}: {len(set(sizes))} input sizes, {megapixels:.1f} megapixels in all")
    expected, got = ([detections(pipeline, image) for image in images] for pipeline in (exact, padded))
    table = Table(title=f"{arguments.name}: {len(images)} pictures, exact padding and {arguments.sizes}")
    table.add_column("detections")
    columns = [compare(expected, got, threshold) for threshold in SCORE_THRESHOLDS]
    for threshold in SCORE_THRESHOLDS:
        table.add_column(f"score > {threshold}", justify="right")
    for quantity in columns[0]:
        table.add_row(quantity, *(column[quantity] for column in columns))
    console.print(table)
    console.print(
        f"OpenVINO {VERSION} on the CPU, NumPy {np.__version__}, {platform.machine()}, "
        f"Python {platform.python_version()}"
    )
    console.print("command: python", shlex.join(sys.argv))
    return 0


def make_pictures(count: int, photos: bool) -> list[np.ndarray]:
    """Pictures of mixed sizes and shapes, uint8 RGB [h, w, 3]."""
    if photos:
        return [decode_image(data, 10**8) for data in sample_pictures(count).values()]
    return [compose_picture("held-out", index).pixels for index in range(count)]


def input_size_hw(image: np.ndarray, pipeline: Pipeline) -> tuple[int, int]:
    """The size of the network's input for one picture."""
    parameters = pipeline.preprocess_parameters
    return padded_size_hw([resized_size_hw(image.shape[:2], parameters)], parameters)


def detections(pipeline: Pipeline, image: np.ndarray) -> Rows:
    """The detections in one picture."""
    found = pipeline.detect([image])
    count = found.num_detections[0, 0]
    return Rows(found.boxes[0, :count], found.scores[0, :count], found.labels[0, :count])


def compare(expected: Sequence[Rows], got: Sequence[Rows], threshold: float) -> dict[str, str]:
    """A column of the table, for the detections of both sides above ``threshold``; they may pair with any score."""
    counts = [0, 0]
    boxes_px, scores, lost = [], [], []
    for exact, padded in zip(expected, got, strict=True):
        for side, (ours, others) in enumerate([(exact, padded), (padded, exact)]):
            for row in np.flatnonzero(ours.scores > threshold):
                counts[side] += 1
                ious = iou(ours.boxes[row], others.boxes) * (others.groups == ours.groups[row])
                if ious.max(initial=0) > PAIR_IOU:
                    pair = ious.argmax()
                    boxes_px.append(np.abs(ours.boxes[row] - others.boxes[pair]).max())
                    scores.append(abs(ours.scores[row] - others.scores[pair]))
                elif ious.max(initial=0) <= SEEN_IOU:
                    lost.append(float(ours.scores[row]))
    return {
        "exact": str(counts[0]),
        "padded": str(counts[1]),
        f"paired, IoU > {PAIR_IOU}": f"{100 * len(scores) / max(1, sum(counts)):.2f} %",
        "boxes apart, px: median, 99 %, largest": spread(boxes_px, "{:.3f}"),
        "scores apart: median, 99 %, largest": spread(scores, "{:.5f}"),
        f"without one of IoU > {SEEN_IOU}: how many, best score": f"{len(lost)}, {max(lost, default=0):.2f}",
    }


def spread(values: Sequence[float | np.floating], form: str) -> str:
    """Median, 99th percentile and largest."""
    return ", ".join(
        form.format(value) for value in np.percentile(np.array(values or [np.nan]), (50, 99, 100))
    )


if __name__ == "__main__":
    sys.exit(main())
