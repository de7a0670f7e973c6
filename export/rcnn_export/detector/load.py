"""Loads a torchvision two-stage detector: which model, which weights, which class names.

A detector is named by a torchvision builder (``fasterrcnn_resnet50_fpn``) or by
``package.module:function``, any function that returns a
``torchvision.models.detection.FasterRCNN``. A function with a parameter ``num_classes`` is given the number.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision import models
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights
from torchvision.ops.misc import FrozenBatchNorm2d

from rcnn_export.detector.builders import call_function
from rcnn_export.detector.checks import check_builder_name, check_followed, check_is_faster_rcnn
from rcnn_export.detector.random_weights import calibrate
from rcnn_export.detector.shapes import check_rpn, num_classes_of
from rcnn_export.detector.weights import download, named_weights_of, published_weights_of, read_state_dict
from rcnn_export.detector.zero_eps import allow_zero_eps
from rcnn_export.errors import ExportError

TORCHVISION_MODELS = sorted(
    name for name in models.list_models(module=detection) if name.startswith("fasterrcnn_")
)
BACKGROUND = "__background__"
AS_BUILT = "builder"  # the weights that the user's own function gives the detector
RANDOM_SEED = 0


@dataclass(frozen=True)
class Detector:
    """A detector in eval mode on the CPU, and what its manifest says about it.

    ``class_names[label]`` names a label; label 0 is the background.
    """

    model: FasterRCNN
    model_name: str
    weights: str
    class_names: list[str]

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
) -> Detector:
    """Builds ``model`` and loads ``weights`` into it.

    Args:
        model: a torchvision builder's name, or ``package.module:function``.
        weights: a torchvision weights name (``COCO_V1``, ``DEFAULT``), a ``.pth`` or
            ``.safetensors`` file holding a state dict, ``random`` (seeded), or ``builder``: those that a
            function of one's own gives the detector.
        num_classes: classes with the background; by default as many as the weights have.
        labels: a text file, one class name a line, without the background.

    Raises:
        ExportError: the model, the weights or the labels do not exist or do not fit together.
    """
    _check_model_name(model)
    names_from_labels = read_labels(labels) if labels else None
    if num_classes is None and names_from_labels:
        num_classes = len(names_from_labels)

    as_built = ":" in model and weights == AS_BUILT
    if ":" in model and weights == "DEFAULT":
        raise ExportError(
            f"{model} has no published weights: give --weights a .pth or .safetensors file, {AS_BUILT} for those that "
            "the function itself gives the detector, or random"
        )
    named_weights = None if weights == "random" or as_built else named_weights_of(model, weights)
    state_dict: dict[str, torch.Tensor] | None = None
    if named_weights is not None:
        state_dict = download(named_weights)
    elif weights != "random" and not as_built:
        state_dict = read_state_dict(Path(weights))
        named_weights = published_weights_of(model, Path(weights))
    if state_dict is not None:
        in_weights = _num_classes_of(state_dict)
        if num_classes is not None and in_weights is not None and num_classes != in_weights:
            raise ExportError(
                f"the weights {weights} are for {in_weights} classes (background included), but "
                f"{num_classes} were asked for: give --num-classes {in_weights} or labels for "
                f"{in_weights - 1} classes, or train weights for {num_classes} classes"
            )
        num_classes = in_weights or num_classes

    detector = build_detector(model, num_classes)
    if weights == "random":
        calibrate(detector)
    elif state_dict is not None:
        _load_state_dict(detector, state_dict, model, weights)
        if named_weights is FasterRCNN_ResNet50_FPN_Weights.COCO_V1:
            _set_batch_norm_eps(detector, 0.0)  # as torchvision does: they were trained so

    allow_zero_eps(detector)
    class_names = names_from_labels or _class_names(detector, named_weights)
    if len(class_names) != num_classes_of(detector):
        raise ExportError(
            f"{labels or weights} names {len(class_names) - 1} classes, but {model} has "
            f"{num_classes_of(detector) - 1} without the background: give one name a line for each"
        )
    return Detector(detector.eval(), model, weights, class_names)


def build_detector(model: str, num_classes: int | None = None) -> FasterRCNN:
    """An untrained detector with ``num_classes`` classes, the background included.

    Without ``num_classes`` it has as many as its builder gives it: 91 in torchvision.

    Raises:
        ExportError: no such builder, it fails, or it returns a detector that cannot be exported.
    """
    _check_model_name(model)
    if ":" in model:
        detector = check_is_faster_rcnn(call_function(model, num_classes, RANDOM_SEED), model)
    else:
        torch.manual_seed(RANDOM_SEED)
        classes = {} if num_classes is None else {"num_classes": num_classes}
        detector = models.get_model(model, weights=None, weights_backbone=None, **classes)
    check_detector(detector.eval())
    if num_classes is not None and num_classes_of(detector) != num_classes:
        raise ExportError(
            f"{model} returned a detector of {num_classes_of(detector)} classes, but {num_classes} were asked for "
            "(background included): give the function a parameter num_classes that decides it"
        )
    return detector


def check_detector(model: FasterRCNN) -> None:
    """Refuses a detector whose answers an export would not give.

    Raises:
        ExportError: it has code of its own where an export follows torchvision's, or parts that do not fit together.
    """
    check_followed(model)
    check_rpn(model)
    num_classes_of(model)


def read_labels(path: Path) -> list[str]:
    """Class names with the background put first, from a file of one name a line."""
    try:
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ExportError(f"cannot read the labels {path}: {error.strerror}") from error
    if not names:
        raise ExportError(f"the labels file {path} is empty: write one class name a line")
    return names if names[0] == BACKGROUND else [BACKGROUND, *names]


def _check_model_name(model: str) -> None:
    check_builder_name(model)
    if ":" not in model and model not in TORCHVISION_MODELS:
        raise ExportError(
            f"unknown model {model!r}: give one of {', '.join(TORCHVISION_MODELS)}, or "
            "package.module:function for a function that returns a FasterRCNN"
        )


def _num_classes_of(state_dict: dict[str, torch.Tensor]) -> int | None:
    scores = state_dict.get("roi_heads.box_predictor.cls_score.weight")
    return None if scores is None else len(scores)


def _load_state_dict(
    model: FasterRCNN, state_dict: dict[str, torch.Tensor], model_name: str, weights: str
) -> None:
    try:
        problems = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        raise ExportError(f"the weights {weights} do not fit {model_name}: {error}") from error
    # A FrozenBatchNorm2d saves no step count; it is the same function as BatchNorm2d in eval mode.
    missing = [key for key in problems.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or problems.unexpected_keys:
        raise ExportError(
            f"the weights {weights} do not fit {model_name}: "
            f"{len(missing)} tensors missing (first: {missing[:3]}), "
            f"{len(problems.unexpected_keys)} unexpected (first: {problems.unexpected_keys[:3]}). "
            "Check --model"
        )


def _set_batch_norm_eps(model: FasterRCNN, eps: float) -> None:
    for layer in model.modules():
        if isinstance(layer, (torch.nn.BatchNorm2d, FrozenBatchNorm2d)):
            layer.eps = eps


def _class_names(model: FasterRCNN, weights: models.WeightsEnum | None) -> list[str]:
    if weights is not None and len(weights.meta["categories"]) == num_classes_of(model):
        return list(weights.meta["categories"])
    return [BACKGROUND, *(f"class_{label}" for label in range(1, num_classes_of(model)))]
