"""Labelling configs of Label Studio: which regions and labels a project uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from ..._errors import InvalidParameterError
from ..._info import DetectorInfo

KINDS = ("RectangleLabels", "BrushLabels", "PolygonLabels", "KeyPointLabels")
SCORE_THRESH = 0.5  # if a control has no model_score_threshold


@dataclass(frozen=True)
class Control:
    """A tag for labelled regions of a picture, with those of its labels that the detector knows.

    Attributes:
        kind: one of KINDS in lower case, as in regions.
        name: the name of the tag; `image`: the name of the Image tag that it belongs to.
        key: the key of the picture in a task's data.
        labels: name of a class, or of a keypoint for KeyPointLabels -> label.
        score_thresh: detections whose score is above this become regions (0 to 1).
        point_thresh: keypoints whose own score, a logit, is above this become regions; None for all of them.
    """

    kind: str
    name: str
    image: str
    key: str
    labels: dict[str, str]
    score_thresh: float
    point_thresh: float | None


def read_config(text: str, info: DetectorInfo) -> list[Control]:
    """The controls of a labelling config for which the detector has predictions.

    A label stands for the classes in its attribute `predicted_values`, or else for the class with its own name or alias;
    upper and lower case are the same. Controls with `model_skip="true"` are left out.

    Raises:
        InvalidParameterError: the config cannot be read, or there is no such control; the message says why.
    """
    root = _parse(text)
    images = {tag.get("name", ""): tag.get("value", "").lstrip("$") for tag in _tags(root, "Image")}
    controls, reasons = [], []
    for kind in KINDS:
        for tag in _tags(root, kind):
            image = tag.get("toName", "").split(",")[0].strip()
            if not images.get(image) or tag.get("model_skip", "").lower() == "true":
                continue
            names = _names(kind, info)
            labels = _read_labels(tag, names)
            if labels:
                controls.append(_control(kind, tag, image, images[image], labels))
            else:
                reasons.append(_why_unused(kind, tag, names, info))
    if not controls:
        expected = f"expected an Image with a value, and for it one of {', '.join(KINDS)}"
        raise InvalidParameterError(
            f"the labelling config has nothing for {info.model}: {'; '.join(reasons) or expected}"
        )
    return controls


def _parse(text: str) -> ElementTree.Element:
    if "<!DOCTYPE" in text:  # it may declare entities that grow without end
        raise InvalidParameterError("the labelling config has a document type, expected tags only")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InvalidParameterError(f"the labelling config is not XML: {error}") from error


def _tags(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [tag for tag in root.iter() if isinstance(tag.tag, str) and tag.tag.lower() == name.lower()]


def _names(kind: str, info: DetectorInfo) -> Sequence[str]:
    """The classes or keypoints that the detector can label in regions of a kind."""
    if kind == "KeyPointLabels":
        return info.keypoint_names
    return info.class_names[1:] if kind == "RectangleLabels" or info.has_masks else ()


def _read_labels(tag: ElementTree.Element, names: Sequence[str]) -> dict[str, str]:
    """Name -> label; if several labels claim a name, the first gets it."""
    claimed: dict[str, str] = {}
    for label in _tags(tag, "Label"):
        own = label.get("value", "")
        shown = label.get("alias") or own
        listed = label.get("predicted_values")
        for name in listed.split(",") if listed else (own, shown):
            if shown:
                claimed.setdefault(name.strip().lower(), shown)
    return {name: claimed[name.lower()] for name in names if name.lower() in claimed}


def _number(tag: ElementTree.Element, attribute: str) -> float | None:
    text = tag.get(attribute)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InvalidParameterError(
            f"the labelling config has {attribute}={text!r}, expected a number"
        ) from error


def _control(kind: str, tag: ElementTree.Element, image: str, key: str, labels: dict[str, str]) -> Control:
    score_thresh = _number(tag, "model_score_threshold")
    if score_thresh is None:
        score_thresh = SCORE_THRESH
    if not 0 <= score_thresh <= 1:
        raise InvalidParameterError(
            f"the labelling config has model_score_threshold={score_thresh:g}, expected a number from 0 to 1"
        )
    return Control(
        kind.lower(),
        tag.get("name", ""),
        image,
        key,
        labels,
        score_thresh,
        _number(tag, "model_point_threshold"),
    )


def _why_unused(kind: str, tag: ElementTree.Element, names: Sequence[str], info: DetectorInfo) -> str:
    if not names:
        family, what = ("Keypoint", "keypoints") if kind == "KeyPointLabels" else ("Mask", "masks")
        return f"{kind} needs {what}, which a {family} R-CNN returns and this detector does not"
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return (
        f"no label of {kind} {tag.get('name')!r} is one of its names ({shown}); rename a label, or give it "
        'predicted_values="NAME,..."'
    )
