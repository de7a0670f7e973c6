"""Records the results of SAHI's slicing and merging for random pictures and detections in `recorded.json`.

    python -m venv sahi && sahi/bin/pip install sahi==0.12.8 && sahi/bin/python tests/client/sahi/record.py

SAHI is not installed with the test packages: its OpenCV needs NumPy 2, and the server needs NumPy 1.
"""

import itertools
import json
from pathlib import Path

import numpy as np
from sahi import __version__
from sahi.postprocess.combine import GreedyNMMPostprocess, NMMPostprocess, NMSPostprocess
from sahi.prediction import ObjectPrediction
from sahi.slicing import get_slice_bboxes

METHODS = {"greedy_nmm": GreedyNMMPostprocess, "nmm": NMMPostprocess, "nms": NMSPostprocess}


def main() -> None:
    """Write the file."""
    rng = np.random.default_rng(0)
    slices = []
    for size_hw, tile_hw, overlap in itertools.product(
        ((90, 130), (64, 64), (40, 200), (1, 1)), ((64, 64), (30, 50), (50, 30)), (0.0, 0.2, 0.5)
    ):
        found = get_slice_bboxes(*size_hw, *tile_hw, False, overlap, overlap)
        slices.append({"size_hw": size_hw, "tile_hw": tile_hw, "overlap": overlap, "boxes": found})
    detections, merged = [], []
    for number in range(2):
        corners, sides = rng.integers(0, 50, (24, 2)), rng.integers(4, 40, (24, 2))
        boxes = np.concatenate((corners, corners + sides), axis=1).tolist()
        scores = (rng.integers(1, 20, 24) / 20).tolist()  # some are equal
        labels = rng.integers(1, 4, 24).tolist()
        detections.append({"boxes": boxes, "scores": scores, "labels": labels})
        for method, metric, thresh in itertools.product(METHODS, ("ios", "iou"), (0.3, 0.5, 0.8)):
            kept = METHODS[method](thresh, metric.upper(), class_agnostic=False)(
                [
                    ObjectPrediction(bbox=box, category_id=label, category_name=str(label), score=score)
                    for box, score, label in zip(boxes, scores, labels, strict=True)
                ]
            )
            objects = [
                [each.category.id, each.score.value, *map(float, each.bbox.to_xyxy())] for each in kept
            ]
            how = {"method": method, "metric": metric, "thresh": thresh}
            merged.append({"detections": number, **how, "objects": sorted(objects)})
    content = {"sahi": __version__, "slices": slices, "detections": detections, "merged": merged}
    Path(__file__).with_name("recorded.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
