"""Loads a torchvision two-stage detector: its model, its weights, and the names of its classes and keypoints.

A detector is named by a torchvision builder (``fasterrcnn_resnet50_fpn``) or by
``package.module:function``, any function that returns a
``torchvision.models.detection.FasterRCNN``, ``MaskRCNN`` or ``KeypointRCNN``. If the function has a parameter
``num_classes`` or ``num_keypoints``, the number is passed to it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rcnn_backend.contract.chain_types import Chain
from torchvision import models
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN, KeypointRCNN_ResNet50_FPN_Weights

from rcnn_export.detector.batch_norm import batch_norm_eps_of, report_open_eps, set_batch_norm_eps
from rcnn_export.detector.builders import call_function
from rcnn_export.detector.checks import check_builder_name, check_followed, check_is_faster_rcnn
from rcnn_export.detector.families import chain_of
from rcnn_export.detector.labels import BACKGROUND, read_keypoint_names, read_labels
from rcnn_export.detector.random_weights import calibrate
from rcnn_export.detector.shapes import check_rpn, head_sizes, num_classes_of, num_keypoints_of
from rcnn_export.detector.weights import RANDOM, find_weights
from rcnn_export.detector.weights_fit import load_into
from rcnn_export.detector.zero_eps import allow_zero_eps
from rcnn_export.errors import ExportError

TORCHVISION_MODELS = sorted(
    name
    for name in models.list_models(module=detection)
    if name.startswith(("fasterrcnn_", "maskrcnn_", "keypointrcnn_"))
)
COCO_KEYPOINTS: list[str] = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta["keypoint_names"]
RANDOM_SEED = 0


@dataclass(frozen=True)
class Detector:
    """A detector in eval mode on the CPU, and the information about it that goes into its manifest.

    ``class_names[label]`` is the name of a label; label 0 is the background. ``weights_key`` is the key of its state
    dict in a file that contains several, if a key was given. ``keypoint_names`` are the names of a Keypoint R-CNN's
    keypoints, in order.
    """

    model: FasterRCNN
    model_name: str
    weights: str
    class_names: list[str]
    weights_key: str | None = None
    keypoint_names: list[str] = field(default_factory=list)

    @property
    def chain(self) -> Chain:
        """The chain of steps of its family."""
        return chain_of(self.model)

    @property
    def batch_norm_eps(self) -> float | None:
        """The eps of all its batch normalisation layers; None if it has none, or if they differ."""
        return batch_norm_eps_of(self.model)

    @property
    def weights_hash(self) -> str:
        """sha256 over every parameter and buffer, in the order of the state dict."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_detector(
    model: str,
    weights: str = "random",
    num_classes: int | None = None,
    labels: Path | None = None,
    *,
    num_keypoints: int | None = None,
    keypoints: Path | None = None,
    weights_key: str | None = None,
    batch_norm_eps: float | None = None,
    family: str | None = None,
    starts_anew: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Detector:
    """Builds ``model`` and loads ``weights`` into it.

    Args:
        model: a torchvision builder's name, or ``package.module:function``.
        weights: a torchvision weights name (``COCO_V1``, ``DEFAULT``), a file of ``torch.save`` or
            safetensors with a state dict, alone or in a checkpoint, ``random`` (seeded), or ``builder`` for the weights
            that a user's function gives the detector.
        num_classes: number of classes, including the background; by default as many as the weights have.
        labels: a text file with one class name per line, without the background.
        num_keypoints: used for a Keypoint R-CNN whose weights do not show it; by default the number of names in
            ``keypoints``.
        keypoints: a text file with one keypoint name per line; by default COCO's 17 names, or numbers from 0.
        weights_key: which state dict to use from a file that contains several, with dots between nested keys.
        batch_norm_eps: the eps of every batch normalisation; by default as recorded in the weights, else the model's own.
        family: ``faster_rcnn``, ``mask_rcnn`` or ``keypoint_rcnn``, if a detector of another family is to be refused.
        starts_anew: the prefix of the names of tensors that keep their random values if ``weights`` has none of them.
        report: called with a line of text for everything that a user should know about the weights.

    Raises:
        ExportError: the model, the weights or the labels do not exist or do not fit together.
    """
    _check_model_name(model, family)
    names_from_labels = read_labels(labels) if labels else None
    if num_classes is None and names_from_labels:
        num_classes = len(names_from_labels)
    names_of_keypoints = read_keypoint_names(keypoints) if keypoints else None
    if num_keypoints is None and names_of_keypoints:
        num_keypoints = len(names_of_keypoints)

    given = find_weights(model, weights, weights_key, report)
    state_dict = None if given is None else given.tensors
    if state_dict is not None:
        in_weights = _num_classes_of(state_dict)
        if num_classes is not None and in_weights is not None and num_classes != in_weights:
            raise ExportError(
                f"the weights {weights} are for {in_weights} classes (background included), but "
                f"{num_classes} were asked for: give --num-classes {in_weights} or labels for "
                f"{in_weights - 1} classes, or train weights for {num_classes} classes"
            )
        num_classes = in_weights or num_classes
        num_keypoints = _num_keypoints_of(state_dict) or num_keypoints

    detector = build_detector(model, num_classes, family, num_keypoints)
    eps = given.batch_norm_eps if given and batch_norm_eps is None else batch_norm_eps
    if eps is not None:
        set_batch_norm_eps(detector, eps)
    if weights == RANDOM:
        calibrate(detector)
    elif given is not None:
        load_into(detector, given.tensors, model, weights, report, starts_anew)
        if eps is None and given.published is None:
            report_open_eps(detector, weights, report)

    class_names = names_from_labels or _class_names(detector, given.published if given else None)
    if len(class_names) != num_classes_of(detector):
        raise ExportError(
            f"{labels or weights} names {len(class_names) - 1} classes, but {model} has "
            f"{num_classes_of(detector) - 1} without the background: give one name per line for each"
        )
    in_detector = num_keypoints_of(detector)
    keypoint_names = names_of_keypoints or default_keypoint_names(in_detector)
    if len(keypoint_names) != in_detector:
        raise ExportError(
            f"{keypoints} names {len(keypoint_names)} keypoints, but {model} finds {in_detector or 'none'}: "
            + (
                "give one name per line for each"
                if in_detector
                else "leave the names out, or give a KeypointRCNN"
            )
        )
    return Detector(detector.eval(), model, weights, class_names, weights_key, keypoint_names)


def build_detector(
    model: str,
    num_classes: int | None = None,
    family: str | None = None,
    num_keypoints: int | None = None,
) -> FasterRCNN:
    """An untrained detector with ``num_classes`` classes, the background included, of ``family`` or of any family.

    Without ``num_classes`` and ``num_keypoints`` the builder decides. torchvision's builders use 91 classes, or 2 classes
    and 17 keypoints.

    Raises:
        ExportError: no such builder, it fails, or it returns a detector that cannot be exported.
    """
    _check_model_name(model, family)
    numbers = {"num_classes": num_classes, "num_keypoints": num_keypoints}
    given = {name: number for name, number in numbers.items() if number is not None}
    if ":" in model:
        detector = check_is_faster_rcnn(call_function(model, given, RANDOM_SEED), model, family)
    else:
        if not model.startswith("keypointrcnn_"):
            given.pop("num_keypoints", None)
        torch.manual_seed(RANDOM_SEED)
        detector = models.get_model(model, weights=None, weights_backbone=None, **given)
    allow_zero_eps(detector)
    check_detector(detector.eval())
    if num_classes is not None and num_classes_of(detector) != num_classes:
        raise ExportError(
            f"{model} returned a detector of {num_classes_of(detector)} classes, but {num_classes} were asked for "
            "(background included): give the function a parameter num_classes that decides it"
        )
    if num_keypoints is not None and (found := num_keypoints_of(detector)) not in (0, num_keypoints):
        raise ExportError(
            f"{model} returned a detector of {found} keypoints, but {num_keypoints} were asked for: give the function a "
            "parameter num_keypoints that decides it"
        )
    return detector


def default_keypoint_names(num_keypoints: int) -> list[str]:
    """COCO's names for 17 keypoints, otherwise numbers from 0; clients use the same names for a detector without any."""
    if num_keypoints == len(COCO_KEYPOINTS):
        return list(COCO_KEYPOINTS)
    return [str(number) for number in range(num_keypoints)]


def check_detector(model: FasterRCNN) -> None:
    """Refuses a detector whose answers an export could not reproduce.

    Raises:
        ExportError: it has its own code where an export runs torchvision's, or parts that do not fit together.
    """
    check_followed(model)
    check_rpn(model)
    num_classes_of(model)
    head_sizes(model)


def _check_model_name(model: str, family: str | None) -> None:
    check_builder_name(model, family)
    if ":" not in model and model not in TORCHVISION_MODELS:
        raise ExportError(
            f"unknown model {model!r}: give one of {', '.join(TORCHVISION_MODELS)}, or "
            "package.module:function for a function that returns a FasterRCNN, MaskRCNN or KeypointRCNN"
        )


def _num_classes_of(state_dict: dict[str, torch.Tensor]) -> int | None:
    scores = state_dict.get("roi_heads.box_predictor.cls_score.weight")
    return None if scores is None else len(scores)


def _num_keypoints_of(state_dict: dict[str, torch.Tensor]) -> int | None:
    heatmaps = state_dict.get("roi_heads.keypoint_predictor.kps_score_lowres.weight")
    return None if heatmaps is None else heatmaps.shape[1]  # of a ConvTranspose2d, [in, out, height, width]


def _class_names(model: FasterRCNN, weights: models.WeightsEnum | None) -> list[str]:
    if weights is not None and len(weights.meta["categories"]) == num_classes_of(model):
        return [BACKGROUND, *weights.meta["categories"][1:]]
    return [BACKGROUND, *(f"class_{label}" for label in range(1, num_classes_of(model)))]
