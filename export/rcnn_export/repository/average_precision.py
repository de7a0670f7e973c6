"""COCO's average precision of an exported detector, run in this process on annotated pictures, computed as in rcnn-eval."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from rcnn_backend.pipeline import Pipeline
from rcnn_client.tools.annotations import read_annotations
from rcnn_client.tools.arguments import SCORE_THRESH
from rcnn_client.tools.coco_file import match_classes
from rcnn_client.tools.coco_score import Kind
from rcnn_client.tools.evaluation import read_shapes

from rcnn_export.detector.load import Detector
from rcnn_export.errors import ExportError
from rcnn_export.repository.progress import counted
from rcnn_export.train.coco_dataset import CocoDataset, Sample
from rcnn_export.train.coco_eval import PREFIXES, Detected, found_records, kind_of, score, truth_records

FEW_PICTURES = 50
WORDS: dict[Kind, str] = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}

Aps = dict[str, float]
"""AP50:95 in points, 0 to 100, of boxes and, if they are scored, of masks or keypoints, keyed by these words."""


@dataclass(frozen=True)
class AnnotatedPictures:
    """Pictures and their annotations. ``kind``: what is scored in addition to the boxes."""

    samples: CocoDataset
    kind: Kind


@dataclass(frozen=True)
class _Shapes:
    """What a detector returns in addition to boxes."""

    has_masks: bool
    keypoint_names: list[str]


def read_annotated(
    annotations: Path, folder: Path, detector: Detector, report: Callable[[str], None]
) -> AnnotatedPictures:
    """Reads a COCO instances file, whose file names are relative to ``folder``, and checks every picture.

    Masks or keypoints are scored if both the detector and the file have them.

    Raises:
        ExportError: the file cannot be used, it has a category that is not a class of the detector, or a picture is
            missing or cannot be read.
    """
    shapes = _Shapes(kind_of(detector.model) == "segm", list(detector.keypoint_names))
    try:
        read = read_annotations(annotations)
        match_classes(detector.class_names, read.categories)
        read, kinds, reasons = read_shapes(read, [shapes])
    except ValueError as error:
        raise ExportError(str(error)) from error
    samples = CocoDataset(read, folder, detector.class_names[1:])
    for index in counted(range(len(samples)), report, "Looked at {} of {} annotated pictures"):
        samples[index]  # otherwise a picture that cannot be read would only be found after minutes
    for line in (read.summary, *reasons):
        report(line)
    if len(samples) < FEW_PICTURES:
        are = "is 1 annotated picture" if len(samples) == 1 else f"are {len(samples)} annotated pictures"
        report(f"There {are}. AP over so few depends on chance: a few hundred are better")
    return AnnotatedPictures(samples, kinds[-1])


def measure_aps(pipeline: Pipeline, annotated: AnnotatedPictures, report: Callable[[str], None]) -> Aps:
    """Runs the detector on all of the pictures, one by one."""
    samples = annotated.samples
    indices = counted(range(len(samples)), report, "Ran {} of {} annotated pictures")
    detected = detect_samples(pipeline, (samples[index] for index in indices))
    metrics = score([detected], samples.class_names, annotated.kind)
    return {
        WORDS[kind]: 100 * metrics[f"{PREFIXES[kind]}ap"] for kind in dict.fromkeys(("bbox", annotated.kind))
    }


def describe(aps: Aps) -> str:
    """Such as ``AP 83.26 of boxes, 74.60 of masks``."""
    return "AP " + ", ".join(f"{points:.2f} of {word}" for word, points in aps.items())


def largest_loss(expected: Aps, found: Aps) -> float:
    """The largest loss of AP, in points, among boxes, masks and keypoints; negative if all are higher than expected."""
    return max(expected[word] - found[word] for word in expected)


def detect_samples(pipeline: Pipeline, samples: Iterable[Sample]) -> Detected:
    """The pipeline's detections, in the form of ``coco_eval.detect`` for a torch model; image ids count from 0."""
    detected = Detected()
    for image_id, (picture, target) in enumerate(samples):
        answers = pipeline.detect([picture.permute(1, 2, 0).numpy()], {"score_thresh": SCORE_THRESH}).answers
        count = int(answers["num_detections"][0, 0])
        found = {name: array[0, :count] for name, array in answers.items() if name != "num_detections"}
        height, width = picture.shape[1:]
        detected.images.append({"id": image_id, "height": height, "width": width})
        detected.truth += truth_records(image_id, target)
        detected.found += _found_records(image_id, (height, width), found)
    return detected


def _found_records(
    image_id: int, size_hw: tuple[int, int], found: dict[str, npt.NDArray[Any]]
) -> list[dict[str, Any]]:
    """COCO's records of the n detections of one picture."""
    names = {"labels", "boxes", "scores", "keypoints"} & found.keys()
    records = found_records(image_id, {name: torch.from_numpy(found[name]) for name in names})
    if "rles" in found:
        for record, counts in zip(records, found["rles"], strict=True):
            record["segmentation"] = {"size": list(size_hw), "counts": counts}
    return records
