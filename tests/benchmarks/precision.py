"""COCO AP of a detector in torchvision and exported in each precision, on the sample's held-out pictures.

    python tests/benchmarks/precision.py --weights run/weights.safetensors --model fasterrcnn_resnet50_fpn

The same decoded pictures go to all. On a GPU if there is one, with the engine named. INT8 is calibrated on training
pictures of the sample, once by each method. The AP of masks stands beside that of boxes where the model has masks.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rcnn_backend.devices import Cpu, Device, Gpu
from rcnn_backend.pipeline import Pipeline
from rcnn_client.tools.arguments import SCORE_THRESH
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.digits.dataset import DigitsDataset, write_coco
from rcnn_export.engines.options import (
    AOTI,
    CUDNN,
    NUM_CALIBRATION_PICTURES,
    ONNX,
    Calibration,
    EngineOptions,
)
from rcnn_export.engines.precision import FP16, FP32, INT8, PRECISIONS
from rcnn_export.engines.ranges import METHODS
from rcnn_export.repository.write import export_repository
from rcnn_export.train.coco_dataset import Sample
from rcnn_export.train.coco_eval import Detected, detect, found_records, score, truth_records
from rich.console import Console
from rich.table import Table
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

SAMPLE = Path(__file__).resolve().parents[2] / "export" / "samples"
NAME = "detector"
MAX_AP_DIFFERENCE = {FP32.name: 0.01, FP16.name: 0.1, INT8.name: 0.5}  # points of AP50:95


def main() -> int:
    """Prints the APs; 0 if none is further from torchvision's than MAX_AP_DIFFERENCE."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="rcnn_export.digits.detector:digits_detector")
    parser.add_argument("--weights", default=str(SAMPLE / "digits.safetensors"))
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument(
        "--engine", choices=(ONNX, CUDNN, AOTI), default=AOTI if torch.cuda.is_available() else ONNX
    )
    parser.add_argument("--precision", choices=tuple(PRECISIONS), nargs="+", default=[FP32.name, FP16.name])
    options = parser.parse_args()
    console = Console(width=110)
    detector = load_detector(options.model, options.weights, labels=SAMPLE / "labels.txt")
    has_masks = isinstance(detector.model, MaskRCNN)
    data = DigitsDataset("held-out", options.pictures, has_masks)
    samples = [data[index] for index in range(len(data))]

    scores = {}
    for precision in options.precision:
        for method in METHODS if precision == INT8.name else ("",):
            label = f"{precision} {method}".strip()
            scores[label] = measure(detector, samples, options.engine, precision, method)
    target = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reference = score([detect(detector.model.to(target), enumerate(samples))], data.class_names, has_masks)

    table = Table(title=f"{options.model}, {options.pictures} held-out pictures")
    shown = ["ap", "ap50", "ap75", *["segm_ap"] * has_masks]
    for column in ("", "AP50:95", "AP50", "AP75", *["masks AP50:95"] * has_masks, "points from torchvision"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("torchvision FP32", *(f"{reference[key]:.5f}" for key in shown))
    holds = True
    for label, own in scores.items():
        points = [100 * (own[key] - reference[key]) for key in shown if key.endswith("ap")]
        numbers = [f"{own[key]:.5f}" for key in shown]
        table.add_row(f"{options.engine} {label}", *numbers, ", ".join(f"{each:+.4f}" for each in points))
        holds &= max(map(abs, points)) <= MAX_AP_DIFFERENCE[label.split()[0]]
    console.print(table)
    console.print(f"command: python {shlex.join(sys.argv)}", markup=False, soft_wrap=True)
    return 0 if holds else 1


def measure(
    detector: Detector, samples: Sequence[Sample], engine: str, precision: str, method: str
) -> dict[str, Any]:
    """The scores of the exported detector; ``method``: of calibration, for INT8."""
    with tempfile.TemporaryDirectory() as folder:
        repository, pictures = Path(folder) / "models", Path(folder) / "pictures"
        calibration = None
        if method:
            write_coco(pictures, "train", range(NUM_CALIBRATION_PICTURES))
            calibration = Calibration(pictures, method=method)
        options = EngineOptions(engine, PRECISIONS[precision], calibration=calibration)
        export_repository(detector, repository, NAME, options=options)
        device: Device = Gpu(0) if torch.cuda.is_available() else Cpu()
        pipeline = Pipeline.load(repository, NAME, device)
        return score([run(pipeline, samples)], pipeline.class_names[1:], pipeline.mask_head is not None)


def run(pipeline: Pipeline, samples: Sequence[Sample]) -> Detected:
    """What the pipeline finds, as ``coco_eval.detect`` tells it of a torch model."""
    detected = Detected()
    for image_id, (picture, target) in enumerate(samples):
        detections = pipeline.detect([picture.permute(1, 2, 0).numpy()], {"score_thresh": SCORE_THRESH})
        own = (0, slice(int(detections.num_detections[0, 0])))
        height, width = picture.shape[1:]
        detected.images.append({"id": image_id, "height": height, "width": width})
        detected.truth += truth_records(image_id, target)
        found = {
            name: torch.from_numpy(getattr(detections, name)[own]) for name in ("labels", "boxes", "scores")
        }
        if detections.masks is not None:
            masks = torch.from_numpy(detections.masks[own].astype("float32"))[:, None]
            found["masks"] = paste_masks_in_image(masks, found["boxes"], (height, width))
        detected.found += found_records(image_id, found)
    return detected


if __name__ == "__main__":
    sys.exit(main())
