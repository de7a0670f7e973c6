"""The eps of a detector's batch normalisation, which a state dict does not record.

torchvision sets it to 0 in ``fasterrcnn_resnet50_fpn(weights="COCO_V1")``, whose weights were trained with 0, and leaves
it at 1e-5 in every other case. A detector that is fine-tuned from COCO_V1 is trained with 0.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops.misc import FrozenBatchNorm2d

from rcnn_export.detector.zero_eps import allow_zero_eps
from rcnn_export.errors import ExportError


def batch_norm_eps_of(model: nn.Module) -> float | None:
    """The eps of all batch normalisation layers in ``model``; None if there is none, or if they differ."""
    found = {float(layer.eps) for layer in _layers(model)}
    return found.pop() if len(found) == 1 else None


def set_batch_norm_eps(model: nn.Module, eps: float) -> None:
    """Gives every batch normalisation of ``model`` this eps.

    Raises:
        ExportError: it has no batch normalisation.
    """
    layers = list(_layers(model))
    if not layers:
        raise ExportError(
            "--batch-norm-eps was given, but the model has no batch normalisation: leave it out"
        )
    for layer in layers:
        layer.eps = eps
    allow_zero_eps(model)


def report_open_eps(model: nn.Module, weights: str, report: Callable[[str], None]) -> None:
    """Reports if ``model`` may have been trained with an eps other than its own; ``weights`` does not record the eps."""
    eps = batch_norm_eps_of(model)
    if eps and _has_v1_backbone(model):
        report(
            f"{weights} does not record the eps of batch normalisation: the model's own, {eps:g}, is used. If the "
            "detector was fine-tuned from torchvision's COCO_V1 (DEFAULT), it has eps 0: give --batch-norm-eps 0"
        )


def _has_v1_backbone(model: nn.Module) -> bool:
    """Whether its backbone is that of ``fasterrcnn_resnet50_fpn``."""
    if "backbone.body.layer4.2.bn3.running_var" not in model.state_dict():
        return False
    with torch.device("meta"):
        v1 = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    return _shapes(model) == _shapes(v1)


def _shapes(model: Any) -> dict[str, torch.Size]:
    # Frozen layers have no num_batches_tracked.
    return {
        name: tensor.shape
        for name, tensor in model.backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def _layers(model: nn.Module) -> Iterator[Any]:
    return (layer for layer in model.modules() if isinstance(layer, (_BatchNorm, FrozenBatchNorm2d)))
