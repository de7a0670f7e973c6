"""COCO AP of a detector in torchvision and exported in each precision, on the sample's held-out pictures.

    python tests/benchmarks/precision.py --weights run/weights.safetensors --model fasterrcnn_resnet50_fpn

All get the same decoded pictures. They run on a GPU if there is one, with the engine of --engine. INT8 is calibrated on
training pictures of the sample, once with each method. With --engine cudnn, INT8 runs like the other precisions.
Otherwise it runs on the CPU: in OpenVINO, which serves there, and in ONNX Runtime, which computes exactly the nodes of
the graph, as TensorRT does. If the model has masks or keypoints, their AP is shown in addition to that of the boxes.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime
import torch
from rcnn_backend.contract.manifest import ONNX as GRAPH
from rcnn_backend.devices import Cpu, Device, Gpu
from rcnn_backend.engines.load import Engine
from rcnn_backend.engines.onnx import OnnxEngine
from rcnn_backend.pipeline import VERSION, Pipeline
from rcnn_client.tools.coco_score import Kind
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.digits.dataset import DigitsDataset, write_coco
from rcnn_export.engines.graph_checks import clean_graph
from rcnn_export.engines.onnx_export import export_onnx
from rcnn_export.engines.options import (
    AOTI,
    CUDNN,
    METHODS,
    NUM_CALIBRATION_PICTURES,
    ONNX,
    Calibration,
    EngineOptions,
    precision_of,
)
from rcnn_export.engines.precision import FP16, FP32, INT8, PRECISIONS
from rcnn_export.engines.quantize import quantize
from rcnn_export.engines.stages import engine_stages
from rcnn_export.repository.average_precision import detect_samples
from rcnn_export.repository.calibrate import find_pictures, measure_ranges
from rcnn_export.repository.sensitivity import load_graphs
from rcnn_export.repository.write import export_repository
from rcnn_export.train.coco_dataset import MAX_IMAGE_PIXELS, Sample
from rcnn_export.train.coco_eval import PREFIXES, detect, kind_of, score
from rich.console import Console
from rich.table import Table

Scores = dict[
    str, dict[str, Any]
]  # the results of ``coco_eval.score``, by a label whose first word is the precision
SAMPLE = Path(__file__).resolve().parents[2] / "export" / "samples"
NAME = "detector"
MAX_AP_DIFFERENCE = {FP32.name: 0.01, FP16.name: 0.1, INT8.name: 0.5}  # points of AP50:95


def main() -> int:
    """Prints the APs; returns 0 if none differs from torchvision's by more than MAX_AP_DIFFERENCE."""
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
    detector = load_detector(options.model, options.weights, labels=SAMPLE / "labels.txt")
    kind = kind_of(detector.model)
    data = DigitsDataset("held-out", options.pictures, kind)
    samples = [data[index] for index in range(len(data))]
    target = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    expected = score([detect(detector.model.to(target), enumerate(samples))], data.class_names, kind)
    detector.model.cpu()
    scores = {"torchvision": expected}
    for precision in options.precision:
        if precision == INT8.name:
            with tempfile.TemporaryDirectory() as folder:
                pictures = Path(folder) / "pictures"
                write_coco(pictures, "train", range(NUM_CALIBRATION_PICTURES))
                if options.engine == CUDNN:
                    for method in METHODS:
                        calibration = Calibration(pictures, method=method)
                        found = measure(detector, samples, CUDNN, precision, calibration)
                        scores[f"{precision} {method} {CUDNN}"] = found
                else:
                    scores |= measure_int8(detector, samples, pictures)
        else:
            scores[f"{precision} {options.engine}"] = measure(detector, samples, options.engine, precision)
    return print_scores(f"{options.model}, {options.pictures} held-out pictures", scores, kind)


def measure(
    detector: Detector,
    samples: Iterable[Sample],
    engine: str,
    precision: str,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """The scores of the exported detector."""
    with tempfile.TemporaryDirectory() as folder:
        options = EngineOptions(engine, precision_of(engine, precision), calibration=calibration)
        export_repository(detector, Path(folder), NAME, options=options)
        device: Device = Gpu(0) if torch.cuda.is_available() else Cpu()
        return score_pipeline(Pipeline.load(Path(folder), NAME, device), samples, detector)


def measure_int8(detector: Detector, samples: Sequence[Sample], pictures: Path) -> Scores:
    """The scores in INT8 with each method, calibrated on the pictures in a folder, in both engines on the CPU."""
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        repository, graphs = Path(folder), {}
        export_repository(detector, repository, NAME)
        for stage in engine_stages(detector.model, INT8):
            graphs[stage.name] = clean_graph(export_onnx(stage))
            onnx.save(graphs[stage.name], repository / f"{NAME}_{stage.name}" / VERSION / GRAPH)
        chosen = find_pictures(Calibration(pictures), MAX_IMAGE_PIXELS, print)
        for method in METHODS:
            ranges = measure_ranges(repository, NAME, chosen, method, repository, print)
            quantized = {step: quantize(graph, ranges[step]) for step, graph in graphs.items()}
            for engine, open_engine in ENGINES.items():
                pipeline = load_graphs(repository, NAME, quantized, open_engine)
                scores[f"{INT8.name} {method} {engine}"] = score_pipeline(pipeline, samples, detector)
    return scores


def score_pipeline(pipeline: Pipeline, samples: Iterable[Sample], detector: Detector) -> dict[str, Any]:
    """The result of ``coco_eval.score`` for the pipeline."""
    detected = detect_samples(pipeline, samples)
    return score([detected], detector.class_names[1:], kind_of(detector.model))


class OnnxRuntimeEngine:
    """A graph in ONNX Runtime on the CPU."""

    is_capturable = False

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))


ENGINES: dict[str, Callable[[str, Path], Engine]] = {
    "OpenVINO": lambda _, path: OnnxEngine(path),
    "ONNX Runtime": lambda _, path: OnnxRuntimeEngine(path),
}


def print_scores(title: str, scores: Scores, kind: Kind) -> int:
    """Prints a table; returns 0 if no AP50:95 differs from the first row's by more than MAX_AP_DIFFERENCE, else 1."""
    shown = [f"{PREFIXES[each]}ap{of}" for each in dict.fromkeys(("bbox", kind)) for of in ("", "50", "75")]
    table = Table(title=title)
    for column in ("", *shown, "points from the first"):
        table.add_column(column, justify="right" if column else "left")
    expected, holds = next(iter(scores.values())), True
    for label, own in scores.items():
        points = [100 * (own[key] - expected[key]) for key in shown if key.endswith("ap")]
        numbers = [f"{own[key]:.5f}" for key in shown]
        table.add_row(label, *numbers, ", ".join(f"{each:+.3f}" for each in points))
        holds &= max(map(abs, points)) <= MAX_AP_DIFFERENCE.get(label.split()[0], 0.0)
    console = Console(width=130)
    console.print(table)
    console.print(f"command: python {shlex.join(sys.argv)}", markup=False, soft_wrap=True)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
