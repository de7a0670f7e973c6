"""Loads a state dict into a detector, or says why it does not fit."""

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection

from rcnn_export.detector.foreign_weights import rcnn_kind
from rcnn_export.errors import ExportError

CLASS_SCORES = "roi_heads.box_predictor.cls_score.weight"
NAMES = {detection.MaskRCNN: "Mask R-CNN", detection.KeypointRCNN: "Keypoint R-CNN"}


def load_into(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    model_name: str,
    weights: str,
    report: Callable[[str], None],
    starts_anew: str | None = None,
) -> None:
    """Copies ``tensors`` into ``model``, converted to its types; ``report`` gets a warning of NaN or inf.

    Tensors of the model whose names start with ``starts_anew`` keep their values if ``tensors`` has none of them.

    Raises:
        ExportError: tensors are missing, are not in the model, have another shape, or are not plain floating point.
    """
    _check_kinds(model, tensors, weights)
    if starts_anew is not None and not any(name.startswith(starts_anew) for name in tensors):
        kept = {name: own for name, own in model.state_dict().items() if name.startswith(starts_anew)}
        if kept:
            report(f"{weights} has no {starts_anew}..., which keeps its initial weights")
        tensors = {**tensors, **kept}
    if problem := _misfit(model, tensors):
        raise ExportError(
            f"the weights {weights} do not fit {model_name}: {_explain(problem, model, tensors, model_name)}"
        )
    broken = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if broken:
        report(
            f"Warning: {len(broken)} of {len(tensors)} tensors in {weights} have NaN or infinite values (the first: "
            f"{broken[0]}). The detector's answers will be wrong; use weights from before training diverged"
        )


def fitting_builders(tensors: Mapping[str, Tensor]) -> list[str]:
    """The torchvision builders whose detectors ``tensors`` fit, with the number of classes in ``tensors``."""
    scores = tensors.get(CLASS_SCORES)
    classes = {} if scores is None else {"num_classes": len(scores)}
    on_meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    fitting = []
    for name in models.list_models(module=detection, include="fasterrcnn_*"):
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning that copies to the meta device do nothing
            model = models.get_model(name, weights=None, weights_backbone=None, **classes)
            if not _misfit(model, on_meta):
                fitting.append(name)
    return fitting


def _check_kinds(model: nn.Module, tensors: Mapping[str, Tensor], weights: str) -> None:
    own = model.state_dict()
    for name, tensor in tensors.items():
        kind = None
        if type(tensor) not in (Tensor, nn.Parameter):
            kind = f"a {type(tensor).__name__}"
        elif tensor.is_quantized:
            kind = "quantised"
        elif tensor.layout != torch.strided:
            kind = f"sparse ({tensor.layout})"
        elif tensor.is_meta:
            kind = "on the meta device, without values"
        elif name in own and own[name].is_floating_point() and not tensor.is_floating_point():
            kind = f"of {tensor.dtype}"
        if kind:
            raise ExportError(
                f"{name} in {weights} is {kind}: expected a plain tensor of floating-point numbers. Save the state "
                "dict of the FP32, FP16 or BF16 model: torch.save(model.state_dict(), path)"
            )


def _misfit(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Which tensors do not fit ``model``; loads them and returns nothing if all do."""
    own = model.state_dict()
    shapes = [name for name, tensor in tensors.items() if name in own and own[name].shape != tensor.shape]
    try:
        problems = model.load_state_dict(
            {name: tensor for name, tensor in tensors.items() if name not in shapes}, strict=False
        )
    except RuntimeError as error:  # another shape under a name that torchvision had before 0.13
        return str(error).splitlines()[-1].strip()
    # A FrozenBatchNorm2d saves no batch count; it computes the same function as BatchNorm2d in eval mode.
    missing = [
        name
        for name in problems.missing_keys
        if name not in shapes and not name.endswith("num_batches_tracked")
    ]
    found = []
    if shapes:
        name = CLASS_SCORES if CLASS_SCORES in shapes else shapes[0]
        others = f", and {len(shapes) - 1} more have other shapes" if len(shapes) > 1 else ""
        found.append(
            f"{name} is {list(tensors[name].shape)} in the file and {list(own[name].shape)} in the model{others}"
        )
    if missing:
        found.append(f"{len(missing)} tensors are missing in the file (the first: {missing[0]})")
    if problems.unexpected_keys:
        unexpected = problems.unexpected_keys
        found.append(
            f"{len(unexpected)} tensors of the file are not in the model (the first: {unexpected[0]})"
        )
    return "; ".join(found)


def _explain(problem: str, model: nn.Module, tensors: Mapping[str, Tensor], model_name: str) -> str:
    """The problem with its cause and a remedy, if these are known."""
    kind = rcnn_kind(tensors)
    if kind and kind != rcnn_kind(model.state_dict()):
        own = next((name for kind, name in NAMES.items() if isinstance(model, kind)), "Faster R-CNN")
        return f"they are {kind}, and this is a {own}. Give weights of a {own}"
    if fitting := fitting_builders(tensors):
        return f"{problem}. They fit --model {' or '.join(fitting)}"
    if not any("running_mean" in name for name in tensors) and "running_" in problem:
        return (
            f"{problem}. The file has no statistics of batch normalisation: save model.state_dict(), not only its "
            "parameters"
        )
    if ":" in model_name:
        return f"{problem}. Give the function that built the model they were trained in"
    return f"{problem}. If the model was changed, give a function that builds it: --model package.module:function"
