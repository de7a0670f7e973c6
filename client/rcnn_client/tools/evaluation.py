"""Sends the pictures of an annotation file to one or several models, and collects their COCO results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .. import Detections, DetectorInfo
from .._orientation import upright_size
from .._picture_files import open_picture
from .annotations import Annotations, NotAnnotatedError, read_annotations
from .coco_file import Id, Records, box_record, match_classes
from .coco_score import Kind, Scores, score
from .coco_shapes import SHAPES, shape_fields
from .endpoint import Endpoint


class Shapes(Protocol):
    """What a model returns besides boxes, as in `DetectorInfo`."""

    @property
    def has_masks(self) -> bool: ...

    @property
    def keypoint_names(self) -> list[str]: ...


@dataclass(frozen=True)
class Picture:
    """A picture of the annotation file; `size` is its annotated width and height in pixels."""

    image_id: Any
    path: Path
    size: tuple[int, int]


@dataclass(frozen=True)
class Dataset:
    """An annotation file and its pictures."""

    annotations: Annotations
    pictures: list[Picture]

    @staticmethod
    def read(annotations: Path, folder: Path) -> Dataset:
        """Read the annotation file, whose file names are relative to `folder`; the pictures are not read yet.

        Raises:
            ValueError: the file cannot be used, or none of its pictures exists; the message says why.
        """
        read = read_annotations(annotations)
        pictures = [Picture(image.id, folder / image.file_name, image.size) for image in read.images]
        if not any(picture.path.is_file() for picture in pictures):
            raise ValueError(
                f"none of the {len(pictures)} pictures in {annotations} exists; the first would be "
                f"{pictures[0].path}: give the folder to which the file names are relative"
            )
        return Dataset(read, pictures)


@dataclass
class Answers:
    """The answers of a model.

    Attributes:
        category_of: label -> category id.
        detections: by image id; their masks are left out.
        found: by image id, the COCO results: `image_id`, `category_id`, `bbox`, `score`, and those of `segmentation`,
            `keypoints` and `num_keypoints` that the model returns.
        failed: for pictures that failed, the reason by path.
    """

    endpoint: Endpoint
    category_of: dict[int, Id]
    detections: dict[Any, Detections] = field(default_factory=dict)
    found: dict[Any, Records] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)

    def add(self, image_id: Any, detections: Detections) -> None:
        """Keep the answer for a picture."""
        records = self.found[image_id] = []
        for detection, shapes in zip(detections, shape_fields(detections), strict=True):
            if (category_id := self.category_of.get(detection.label)) is not None:
                extras = {name: shapes[name] for name in SHAPES if name in shapes}
                record = box_record(image_id, category_id, detection.box, score=detection.score, **extras)
                records.append(record)
        self.detections[image_id] = dataclasses.replace(detections, mask_probabilities=None, rles=None)

    def records(self, image_ids: set[Any]) -> Records:
        """The COCO results of these pictures."""
        return [record for image_id in self.found if image_id in image_ids for record in self.found[image_id]]


def ask(
    endpoint: Endpoint,
    info: DetectorInfo,
    dataset: Dataset,
    *,
    score_thresh: float,
    in_flight: int,
    advance: Callable[[], None],
) -> Answers:
    """Send every picture to a model; a picture that cannot be used counts as failed.

    Args:
        info: what the server says about the model.
        score_thresh: keep detections whose score is above this.
        in_flight: how many pictures may be at the server at once.
        advance: called after each picture.

    Raises:
        RcnnError: the server or the model cannot be used at all.
        ValueError: an annotated category is not a class of the model.
    """
    answers = Answers(endpoint, match_classes(info.class_names, dataset.annotations.categories))
    with endpoint.connect() as detector:
        usable: list[Picture] = []

        def paths() -> Iterator[Path]:
            for picture in dataset.pictures:
                try:
                    check_picture(picture)
                except Exception as error:  # Pillow raises many kinds
                    answers.failed[picture.path] = (
                        getattr(error, "strerror", None) or str(error) or type(error).__name__
                    )
                    advance()
                else:
                    usable.append(picture)
                    yield picture.path

        stream = detector.detect_stream(paths(), in_flight=in_flight, score_thresh=score_thresh)
        for position, result in enumerate(stream):
            if result.error is None:
                answers.add(usable[position].image_id, result.detections)
            else:
                answers.failed[result.image] = str(result.error)
            advance()
    return answers


def check_picture(picture: Picture) -> None:
    """Check that a file is the annotated picture; its pixels are not decoded.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a picture, or its upright size differs from the annotation.
    """
    with open_picture(picture.path) as image:
        size = upright_size(image)
    if size != picture.size:
        raise ValueError(
            f"is {size[0]}x{size[1]} px upright, but its annotation says {picture.size[0]}x{picture.size[1]}: "
            "the boxes belong to another version of the picture"
        )


def read_shapes(
    annotations: Annotations, infos: Sequence[Shapes]
) -> tuple[Annotations, list[Kind], list[str]]:
    """Read the masks and the keypoints of the file if every model returns them.

    Returns:
        the annotations to score against, the kinds that are scored, and for each other kind that every model returns,
        a sentence why it is not scored: the file has none, or another number of keypoints.

    Raises:
        ValueError: a segmentation or keypoints cannot be used; the message names the first few.
    """
    kinds: list[Kind] = ["bbox"]
    reasons = []
    if all(info.has_masks for info in infos):
        try:
            annotations = annotations.with_masks()
            kinds.append("segm")
        except NotAnnotatedError as error:
            reasons.append(f"masks are not scored: {error}")
    if all(info.keypoint_names for info in infos):
        try:
            with_keypoints = annotations.with_keypoints()
            answered = sorted({len(info.keypoint_names) for info in infos})
            if answered == [with_keypoints.num_keypoints]:
                annotations = with_keypoints
                kinds.append("keypoints")
            else:
                models = "the model returns" if len(infos) == 1 else "the models return"
                reasons.append(
                    f"keypoints are not scored: {models} {' and '.join(map(str, answered))} keypoints, but "
                    f"{with_keypoints.num_keypoints} are annotated"
                )
        except NotAnnotatedError as error:
            reasons.append(f"keypoints are not scored: {error}")
    return annotations, kinds, reasons


def score_all(
    dataset: Dataset, all_answers: Sequence[Answers], kinds: Sequence[Kind]
) -> tuple[set[Any], dict[Kind, list[Scores]]]:
    """Score each model on the pictures that all models answered, so that the scores are comparable.

    Returns:
        the image ids of these pictures, and for each kind the scores in the order of the answers.
    """
    image_ids = set.intersection(*(set(answers.detections) for answers in all_answers))
    images = [
        {"id": picture.image_id, "width": picture.size[0], "height": picture.size[1]}
        for picture in dataset.pictures
        if picture.image_id in image_ids
    ]
    truth = [record for record in dataset.annotations.records() if record["image_id"] in image_ids]
    matched = {category_id for answers in all_answers for category_id in answers.category_of.values()}
    categories = [
        {"id": category.id, "name": category.name}
        for category in dataset.annotations.categories
        if category.id in matched
    ]
    scores = {
        kind: [score(images, categories, truth, each.records(image_ids), kind) for each in all_answers]
        for kind in kinds
    }
    return image_ids, scores
