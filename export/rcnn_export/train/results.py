"""The results of a training run: weights, their metrics, the class names."""

import json
import platform
import shlex
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file

from rcnn_export.detector.batch_norm import batch_norm_eps_of
from rcnn_export.detector.weights_file import BATCH_NORM_EPS
from rcnn_export.train.files import replacing
from rcnn_export.train.loop import Training


def write_results(out: Path, training: Training, argv: list[str]) -> None:
    """Writes the averaged weights after the latest epoch, and their metrics.

    The files are ``weights.safetensors`` (its metadata name the model, the classes and the eps of batch normalisation),
    ``metrics.json`` (the metrics on the held-out pictures, the command, the versions), ``labels.txt`` and, for a Keypoint
    R-CNN, ``keypoints.txt``. Each is replaced in one step.

    Raises:
        ExportError: they cannot be written.
    """
    settings = training.settings
    about = {
        "model": settings.model,
        "num_classes": len(settings.class_names) + 1,  # with the background
        "class_names": settings.class_names,
    }
    if settings.keypoint_names:
        about["keypoint_names"] = settings.keypoint_names
    if (eps := batch_norm_eps_of(training.averaged_model)) is not None:
        about[BATCH_NORM_EPS] = eps
    weights = {
        name: tensor.cpu().contiguous() for name, tensor in training.averaged_model.state_dict().items()
    }
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    on_gpu = torch.cuda.is_available() and next(training.averaged_model.parameters()).is_cuda
    report = {
        **about,
        **training.history[-1],
        "epoch": len(training.history),
        "command": _command(settings.num_processes, argv),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }
    lists = {"labels.txt": settings.class_names}
    if settings.keypoint_names:
        lists["keypoints.txt"] = settings.keypoint_names
    files = ("weights.safetensors", "metrics.json", *lists)
    with replacing(*(out / name for name in files)) as (weights_file, metrics_file, *list_files):
        save_file(weights, weights_file, metadata=metadata)
        metrics_file.write_text(json.dumps(report, indent=2) + "\n")
        for file, names in zip(list_files, lists.values(), strict=True):
            file.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _command(num_processes: int, argv: list[str]) -> str:
    if num_processes == 1:
        return shlex.join(["rcnn-train", *argv])
    return shlex.join(
        ["torchrun", f"--nproc-per-node={num_processes}", "-m", "rcnn_export.commands.train", *argv]
    )
