"""The sources of weights: a file, or torchvision's published weights."""

import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from rcnn_backend.contract.manifest import sha256_of
from torch import Tensor
from torchvision import models
from torchvision.models import detection
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
)

from rcnn_export.detector.state_dicts import StateDict, choose_state_dict
from rcnn_export.detector.weights_file import read_weights_file
from rcnn_export.errors import ExportError

RANDOM, DEFAULT = "random", "DEFAULT"
AS_BUILT = "builder"  # the weights that a user's function gives the detector


class DownloadError(ExportError):
    """Published weights could not be downloaded."""


@dataclass(frozen=True)
class Weights:
    """The state dict of a detector, and what is known about it.

    Attributes:
        published: torchvision's name of the weights, if they are published ones.
        batch_norm_eps: the eps they were trained with; None if it is not recorded.
    """

    tensors: dict[str, Tensor]
    published: models.WeightsEnum | None = None
    batch_norm_eps: float | None = None


def find_weights(model: str, weights: str, key: str | None, report: Callable[[str], None]) -> Weights | None:
    """Reads the file ``weights``, or downloads the published weights of that name; None for ``random`` and ``builder``.

    A published name takes precedence over a file of the same name; ``./NAME`` is always a file.

    Args:
        model: as for ``load_detector``. A function has no published weights.
        key: which state dict to use from a file that contains several, with dots between nested keys.
        report: called with a line about the chosen state dict.

    Raises:
        ExportError: there are no such weights, or they cannot be read.
        DownloadError: they cannot be downloaded.
    """
    is_given = weights == RANDOM or (weights == AS_BUILT and ":" in model)
    named = None if is_given else _published(model, weights)
    if key is not None and (named is not None or is_given):
        raise ExportError(
            f"--weights-key {key} chooses within a file, and {weights} is not a file: leave it out"
        )
    if is_given:
        return None
    if named is not None:
        report(f"{weights} is {named}")
        return Weights(_download(named), named, _trained_eps(named))
    path = Path(weights)
    content, recorded_eps = read_weights_file(path)
    taken, others = choose_state_dict(content, weights, key)
    _report_choice(weights, taken, others, report)
    if published := published_weights_of(path):
        report(f"{weights} is a copy of {published}")
    eps = _trained_eps(published) if published else recorded_eps
    return Weights(taken.tensors, published, taken.batch_norm_eps if eps is None else eps)


def published_weights_of(path: Path) -> models.WeightsEnum | None:
    """The published weights that this file is a copy of, by the hash in their published name."""
    digest = sha256_of(path)
    for name in models.list_models(module=detection):
        for weights in models.get_model_weights(name):
            if digest.startswith(Path(weights.url).stem.rpartition("-")[2]):
                return weights
    return None


def _published(model: str, weights: str) -> models.WeightsEnum | None:
    """The published weights that ``weights`` names; None if it is a file."""
    is_function = ":" in model
    known = {} if is_function else models.get_model_weights(model).__members__
    enum, _, name = weights.rpartition(".")
    if name in known and enum in ("", type(known[name]).__name__):
        return known[name]
    is_name = not Path(weights).suffix or re.fullmatch(r"\w+_Weights\.\w+", weights)
    if os.sep in weights or os.path.lexists(weights) or not is_name:
        return None
    if is_function:
        raise ExportError(
            f"{model} is a function of yours, which has no published weights {weights!r}: "
            f"give --weights a file, {AS_BUILT} for the weights that the function itself gives the detector, or random"
        )
    raise ExportError(
        f"{model} has no weights {weights!r}: give one of {', '.join(known)}, a file, or random"
    )


def _trained_eps(weights: models.WeightsEnum) -> float | None:
    # torchvision overwrites the eps only for these weights. None: the builder's eps.
    overwritten = (
        FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
        MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
        KeypointRCNN_ResNet50_FPN_Weights.COCO_V1,
    )
    return 0.0 if weights in overwritten else None


def _download(weights: models.WeightsEnum) -> dict[str, Tensor]:
    """The state dict of published weights, from torch's cache or the network."""
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, HTTPException) as error:
        raise DownloadError(
            f"cannot download {weights} from {weights.url}: {error}. Download it elsewhere and "
            "give the file as --weights"
        ) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise DownloadError(
            f"the download of {weights} is damaged: delete {cached} if it exists, and try again"
        ) from error


def _report_choice(
    weights: str, taken: StateDict, others: list[StateDict], report: Callable[[str], None]
) -> None:
    removed = f"removed the prefix {taken.prefix} from the names" if taken.prefix else ""
    took = f"took {taken.path}{_average(taken)}" if taken.path else ""
    if taken.key:
        report(f"{weights}: {' and '.join(filter(None, (took, removed)))}")
    if taken.num_left_out:
        report(f"{weights}: tensors left out because they are not the detector's: {taken.num_left_out}")
    paths = [each.path for each in (taken, *others)]
    for other in (each for each in others if each.key):
        key = other.key if paths.count(other.path) > 1 else other.path
        report(f"{weights} also holds {key}{_average(other)}: give --weights-key {key} to take that")


def _average(state_dict: StateDict) -> str:
    return " (EMA: an average over training)" if state_dict.is_average else ""
