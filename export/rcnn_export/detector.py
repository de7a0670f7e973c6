"""Loads a torchvision two-stage detector: which model, which weights, which class names.

A detector is named by a torchvision builder (``fasterrcnn_resnet50_fpn``) or by
``package.module:function``, any function that returns a
``torchvision.models.detection.FasterRCNN``; where it takes ``num_classes`` it is given them.
"""

import hashlib
import importlib
import inspect
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision import models
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights
from torchvision.ops.misc import FrozenBatchNorm2d

from rcnn_export.errors import ExportError

TORCHVISION_MODELS = sorted(
    name for name in models.list_models(module=detection) if name.startswith("fasterrcnn_")
)
BACKGROUND = "__background__"
RANDOM_SEED = 0


@dataclass(frozen=True)
class Detector:
    """A detector in eval mode on the CPU, and what its manifest says of it.

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
            ``.safetensors`` file holding a state dict, or ``random`` (seeded).
        num_classes: classes with the background; by default as many as the weights have.
        labels: a text file, one class name a line, without the background.

    Raises:
        ExportError: the model, the weights or the labels do not exist or do not fit together.
    """
    _check_model_name(model)
    names_from_labels = read_labels(labels) if labels else None
    if num_classes is None and names_from_labels:
        num_classes = len(names_from_labels)

    named_weights = _torchvision_weights(model, weights)
    state_dict: dict[str, torch.Tensor] | None = None
    if named_weights is not None:
        state_dict = _download(named_weights)
    elif weights != "random":
        state_dict = read_state_dict(Path(weights))
        named_weights = _published_weights(model, Path(weights))
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
    if state_dict is None:
        _randomize(detector)
    else:
        _load_state_dict(detector, state_dict, model, weights)
        if named_weights is FasterRCNN_ResNet50_FPN_Weights.COCO_V1:
            _set_batch_norm_eps(detector, 0.0)  # as torchvision does: they were trained so

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
        ExportError: no such builder, or it does not return a FasterRCNN.
    """
    _check_model_name(model)
    classes = {} if num_classes is None else {"num_classes": num_classes}
    torch.manual_seed(RANDOM_SEED)
    if ":" in model:
        function = _import_function(model)
        takes_classes = "num_classes" in inspect.signature(function).parameters
        detector = function(**classes) if takes_classes else function()
    else:
        detector = models.get_model(model, weights=None, weights_backbone=None, **classes)
    if not isinstance(detector, FasterRCNN):
        raise ExportError(
            f"{model} returned {type(detector).__name__}, expected torchvision.models.detection.FasterRCNN"
        )
    return detector.eval()


def num_classes_of(model: FasterRCNN) -> int:
    """Classes the box head scores, the background included."""
    return int(model.roi_heads.box_predictor.cls_score.out_features)


def read_labels(path: Path) -> list[str]:
    """Class names with the background put first, from a file of one name a line."""
    try:
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ExportError(f"cannot read the labels {path}: {error.strerror}") from error
    if not names:
        raise ExportError(f"the labels file {path} is empty: write one class name a line")
    return names if names[0] == BACKGROUND else [BACKGROUND, *names]


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a ``.pth`` (tensors only, nothing is executed) or ``.safetensors`` file."""
    if not path.is_file():
        raise ExportError(
            f"no weights file {path}: give an existing .pth or .safetensors file, "
            "a torchvision weights name such as DEFAULT, or random"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(
            f"cannot read the weights {path}: {reason}. Save a plain state dict: "
            "torch.save(model.state_dict(), path)"
        ) from error
    if isinstance(loaded, dict) and isinstance(
        loaded.get("model"), dict
    ):  # torchvision's reference checkpoints
        loaded = loaded["model"]
    if not (isinstance(loaded, dict) and all(isinstance(value, torch.Tensor) for value in loaded.values())):
        raise ExportError(f"{path} holds no state dict: save it with torch.save(model.state_dict(), path)")
    return loaded


def _check_model_name(model: str) -> None:
    if ":" not in model and model not in TORCHVISION_MODELS:
        raise ExportError(
            f"unknown model {model!r}: give one of {', '.join(TORCHVISION_MODELS)}, or "
            "package.module:function for a function that returns a FasterRCNN"
        )


def _import_function(path: str) -> Callable[..., Any]:
    module_name, _, function_name = path.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: a module in the user's own folder
    try:
        return getattr(importlib.import_module(module_name), function_name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as error:
        raise ExportError(
            f"cannot import {path}: {error}. Expected package.module:function, importable from here"
        ) from error


def _torchvision_weights(model: str, weights: str) -> models.WeightsEnum | None:
    if ":" in model or weights == "random" or Path(weights).suffix in (".pth", ".pt", ".safetensors"):
        return None
    known = models.get_model_weights(model)
    try:
        return known[weights.rpartition(".")[2]]
    except KeyError:
        raise ExportError(
            f"{model} has no weights {weights!r}: give one of {', '.join(known.__members__)}, "
            "a .pth or .safetensors file, or random"
        ) from None


def _download(weights: models.WeightsEnum) -> dict[str, torch.Tensor]:
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise ExportError(
            f"cannot download {weights} from {weights.url}: {error}. Download it elsewhere and "
            "give the file as --weights"
        ) from error


def _published_weights(model: str, path: Path) -> models.WeightsEnum | None:
    """The torchvision weights that this file is a copy of, by the hash in their published name."""
    if model not in TORCHVISION_MODELS:
        return None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for weights in models.get_model_weights(model):
        if digest.startswith(Path(weights.url).stem.rpartition("-")[2]):
            return weights
    return None


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


@torch.no_grad()
def _randomize(model: FasterRCNN) -> None:
    """Scales seeded random weights so that proposals and detections vary and happen.

    An untrained detector scores everything alike, which would try nothing downstream.
    Batch normalisation takes its statistics from one smooth random picture, and each
    predictor's outputs on it are given the spread of a trained one's.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the running statistics become this picture's
        norm.train()
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    picture = torch.rand(1, 3, 24, 32, generator=generator)
    picture = torch.nn.functional.interpolate(picture, scale_factor=16, mode="bicubic").clamp(0, 1)
    images, _ = model.transform([picture[0]])
    features = model.backbone(images.tensors)
    if isinstance(features, torch.Tensor):
        features = {"0": features}
    objectness, deltas = model.rpn.head(list(features.values()))
    _spread(model.rpn.head.cls_logits, _channels_last(objectness), std=1.5)
    _spread(model.rpn.head.bbox_pred, _channels_last(deltas), std=0.3)
    proposals, _ = model.rpn(images, features)
    roi_features = model.roi_heads.box_roi_pool(features, proposals, images.image_sizes)
    class_logits, box_regression = model.roi_heads.box_predictor(model.roi_heads.box_head(roi_features))
    _spread(model.roi_heads.box_predictor.cls_score, class_logits, std=2.0)
    _spread(model.roi_heads.box_predictor.bbox_pred, box_regression, std=0.5)
    model.eval()


def _channels_last(levels: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([level.movedim(1, -1).flatten(0, -2) for level in levels])  # [positions, C]


def _spread(layer: torch.nn.Module, outputs: torch.Tensor, std: float) -> None:
    """Rescales a linear layer so that each of its ``outputs`` [samples, C] has mean 0 and ``std``."""
    scale = std / outputs.std(dim=0).mean().clamp(min=1e-6)
    layer.weight.mul_(scale)
    layer.bias.sub_(outputs.mean(dim=0)).mul_(scale)
