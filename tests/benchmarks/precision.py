"""COCO AP of a detector in torchvision and exported in FP32 and in FP16, on the sample's held-out pictures.

    python tests/benchmarks/precision.py --weights run/weights.safetensors --model fasterrcnn_resnet50_fpn

The same decoded pictures go to all three. On a GPU if there is one, with the engine named.
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
from rcnn_export.digits.dataset import DigitsDataset
from rcnn_export.engines.options import AOTI, ONNX, EngineOptions
from rcnn_export.engines.precision import FP16, FP32, PRECISIONS
from rcnn_export.repository.write import export_repository
from rcnn_export.train.coco_dataset import Sample
from rcnn_export.train.coco_eval import Detected, detect, found_records, score, truth_records
from rich.console import Console
from rich.table import Table

SAMPLE = Path(__file__).resolve().parents[2] / "export" / "samples"
NAME = "detector"
MAX_AP_DIFFERENCE = {FP32.name: 0.01, FP16.name: 0.1}  # points of AP50:95


def main() -> int:
    """Prints the APs; 0 if none is further from torchvision's than MAX_AP_DIFFERENCE."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="rcnn_export.digits.detector:digits_detector")
    parser.add_argument("--weights", default=str(SAMPLE / "digits.safetensors"))
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--engine", choices=(ONNX, AOTI), default=AOTI if torch.cuda.is_available() else ONNX)
    parser.add_argument(
        "--precision", choices=tuple(MAX_AP_DIFFERENCE), nargs="+", default=list(MAX_AP_DIFFERENCE)
    )
    options = parser.parse_args()
    console = Console(width=110)
    data = DigitsDataset("held-out", options.pictures)
    detector = load_detector(options.model, options.weights, labels=SAMPLE / "labels.txt")
    samples = [data[index] for index in range(len(data))]

    aps = {
        precision: measure(detector, samples, options.engine, precision) for precision in options.precision
    }
    target = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reference = score([detect(detector.model.to(target), enumerate(samples))], data.class_names)

    table = Table(title=f"{options.model}, {options.pictures} held-out pictures")
    for column in ("", "AP50:95", "AP50", "AP75", "points from torchvision"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("torchvision FP32", *(f"{reference[key]:.5f}" for key in ("ap", "ap50", "ap75")))
    for precision, own in aps.items():
        numbers = (f"{own[key]:.5f}" for key in ("ap", "ap50", "ap75"))
        table.add_row(
            f"{options.engine} {precision}", *numbers, f"{100 * (own['ap'] - reference['ap']):+.4f}"
        )
    console.print(table)
    console.print(f"command: python {shlex.join(sys.argv)}", markup=False, soft_wrap=True)
    holds = (
        abs(100 * (own["ap"] - reference["ap"])) <= MAX_AP_DIFFERENCE[precision]
        for precision, own in aps.items()
    )
    return 0 if all(holds) else 1


def measure(detector: Detector, samples: Sequence[Sample], engine: str, precision: str) -> dict[str, Any]:
    """The scores of the exported detector."""
    with tempfile.TemporaryDirectory() as folder:
        export_repository(detector, Path(folder), NAME, options=EngineOptions(engine, PRECISIONS[precision]))
        device: Device = Gpu(0) if torch.cuda.is_available() else Cpu()
        pipeline = Pipeline.load(Path(folder), NAME, device)
        return score([run(pipeline, samples)], pipeline.class_names[1:])


def run(pipeline: Pipeline, samples: Sequence[Sample]) -> Detected:
    """What the pipeline finds, as ``coco_eval.detect`` tells it of a torch model."""
    detected = Detected()
    for image_id, (picture, target) in enumerate(samples):
        detections = pipeline.detect([picture.permute(1, 2, 0).numpy()], {"score_thresh": SCORE_THRESH})
        own = (0, slice(int(detections.num_detections[0, 0])))
        height, width = picture.shape[1:]
        detected.images.append({"id": image_id, "height": height, "width": width})
        detected.truth += truth_records(image_id, target)
        detected.found += found_records(
            image_id,
            {
                name: torch.from_numpy(getattr(detections, name)[own])
                for name in ("labels", "boxes", "scores")
            },
        )
    return detected


if __name__ == "__main__":
    sys.exit(main())
