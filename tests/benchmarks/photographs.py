"""COCO AP on photographs, FP32 compared with INT8: aerial pictures of trees, annotated in the PyPI package deepforest.

    pip download deepforest==2.1.0 --no-deps && unzip deepforest-2.1.0-py3-none-any.whl -d deepforest
    python tests/benchmarks/photographs.py deepforest/deepforest/data

The package has the MIT licence; no part of it is in this repository. Its four annotated photographs are cut into tiles.
Every fourth tile is held out; the others are used to fine-tune the sample detector of digits. So the detector is scored
on trees that it has not seen, in photographs of which it has seen other parts. There are only 38 tiles, so the AP is
low; what matters is the difference between INT8 and FP32.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image
from precision import SAMPLE, measure, measure_int8, print_scores
from rcnn_export.commands import train
from rcnn_export.detector.load import load_detector
from rcnn_export.engines.options import ONNX
from rcnn_export.engines.precision import FP32
from rcnn_export.train.coco_dataset import CocoDataset

MODEL = "rcnn_export.digits.detector:digits_detector"
TILE_PX = 400
HELD_OUT_OF = 4  # every fourth tile
VISIBLE = 0.5  # a tree belongs to a tile if more than this share of its box is inside
CATEGORIES = [{"id": 1, "name": "tree"}]


def main() -> int:
    """Cuts, trains, exports and prints; returns 0 if INT8 is as close to FP32 as ``precision.py`` requires."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder deepforest/data of the unpacked package")
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"), help="(default: %(default)s)")
    parser.add_argument("--epochs", default="15", help="(default: %(default)s)")
    options = parser.parse_args()
    cut(options.data, options.out)
    training, held_out = (
        (options.out / f"{part}.json", options.out / part) for part in ("train", "held_out")
    )
    files = ["--train", *map(str, training), "--val", *map(str, held_out), "--out", str(options.out)]
    settings = [
        "--batch-size",
        "2",
        "--learning-rate",
        "1e-3",
        "--horizontal-flip",
        "--epochs",
        options.epochs,
    ]
    if code := train.main(
        ["--model", MODEL, "--weights", str(SAMPLE / "digits.safetensors"), *files, *settings]
    ):
        return code
    weights, labels = options.out / "weights.safetensors", options.out / "labels.txt"
    detector = load_detector(MODEL, str(weights), labels=labels)
    data = CocoDataset(*held_out)
    samples = [data[index] for index in range(len(data))]
    scores = {FP32.name: measure(detector, samples, ONNX, FP32.name)}
    scores |= measure_int8(detector, samples, training[1])
    return print_scores(f"Tree crowns, {len(samples)} tiles held out", scores, "bbox")


def cut(data: Path, out: Path) -> None:
    """Writes the tiles of all photographs that have annotations into ``out``, as two COCO-format datasets."""
    datasets: dict[str, dict[str, Any]] = {}
    for part in ("train", "held_out"):
        (out / part).mkdir(parents=True, exist_ok=True)
        datasets[part] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for path in sorted(data.glob("*.xml")):
        pixels = np.asarray(Image.open(path.with_suffix(".png")).convert("RGB"))
        for number, (left, top) in enumerate(corners(pixels)):
            part = "train" if (number + 1) % HELD_OUT_OF else "held_out"
            images, annotations = datasets[part]["images"], datasets[part]["annotations"]
            tile = Image.fromarray(pixels[top : top + TILE_PX, left : left + TILE_PX])
            file_name = f"{path.stem}_{number:03d}.png"
            tile.save(out / part / file_name)
            images.append(
                {"id": len(images), "file_name": file_name, "width": tile.width, "height": tile.height}
            )
            for x1, y1, x2, y2 in trees(path, left, top).tolist():
                box = [x1, y1, x2 - x1, y2 - y1]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": len(images) - 1, "category_id": 1, "bbox": box}
                )
    for part, dataset in datasets.items():
        (out / f"{part}.json").write_text(json.dumps(dataset))


def corners(pixels: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Left and top of each whole tile."""
    height, width = pixels.shape[:2]
    for top in range(0, height - TILE_PX + 1, TILE_PX):
        for left in range(0, width - TILE_PX + 1, TILE_PX):
            yield left, top


def trees(path: Path, left: int, top: int) -> npt.NDArray[np.float64]:
    """Boxes [n, 4] (x1, y1, x2, y2) of the trees of a tile, from a Pascal VOC file, in pixels of the tile and clipped to it."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    found = [
        [float(box.findtext(side, "")) for side in sides] for box in ElementTree.parse(path).iter("bndbox")
    ]
    boxes = np.array(found) - [left, top, left, top]
    inside = boxes.clip(0, TILE_PX)
    areas, areas_inside = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, inside))
    visible: npt.NDArray[np.float64] = inside[areas_inside > VISIBLE * areas]
    return visible


if __name__ == "__main__":
    sys.exit(main())
