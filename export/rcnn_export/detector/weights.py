"""Where weights come from: a file, or torchvision's published ones."""

import hashlib
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision import models

from rcnn_export.errors import ExportError

FILE_SUFFIXES = (".pth", ".pt", ".safetensors")


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a ``.pth`` (tensors only, nothing is executed) or ``.safetensors`` file."""
    if not path.is_file():
        raise ExportError(
            f"no weights file {path}: give an existing .pth or .safetensors file, "
            "a torchvision weights name such as DEFAULT, or random"
        )
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, torch.Tensor] = load_file(path)
            return tensors
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


def named_weights_of(model: str, weights: str) -> models.WeightsEnum | None:
    """The published weights that ``weights`` names; None where it is a file or the model has none published."""
    if ":" in model or Path(weights).suffix in FILE_SUFFIXES:
        return None
    known = models.get_model_weights(model)
    try:
        return known[weights.rpartition(".")[2]]
    except KeyError:
        raise ExportError(
            f"{model} has no weights {weights!r}: give one of {', '.join(known.__members__)}, "
            "a .pth or .safetensors file, or random"
        ) from None


def download(weights: models.WeightsEnum) -> dict[str, torch.Tensor]:
    """The state dict of published weights, from torch's cache or the network."""
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise ExportError(
            f"cannot download {weights} from {weights.url}: {error}. Download it elsewhere and "
            "give the file as --weights"
        ) from error


def published_weights_of(model: str, path: Path) -> models.WeightsEnum | None:
    """The torchvision weights that this file is a copy of, by the hash in their published name."""
    if ":" in model:
        return None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for weights in models.get_model_weights(model):
        if digest.startswith(Path(weights.url).stem.rpartition("-")[2]):
            return weights
    return None
