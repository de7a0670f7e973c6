"""What a training run leaves behind: weights, their metrics, the class names."""

import json
import platform
import shlex
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file

from rcnn_export.train.loop import Training


def write_results(out: Path, training: Training, argv: list[str]) -> None:
    """Writes the averaged weights as they are after the latest epoch, and what they reach.

    ``weights.safetensors`` (its metadata name the model and the classes), ``metrics.json`` (the metrics on
    the held-out pictures, the command, the versions) and ``labels.txt``, each replaced in one move.
    """
    settings = training.settings
    about = {
        "model": settings.model,
        "num_classes": len(settings.class_names) + 1,  # with the background
        "class_names": settings.class_names,
    }
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
    partials = {
        name: out / f"{name}.partial" for name in ("weights.safetensors", "metrics.json", "labels.txt")
    }
    save_file(weights, partials["weights.safetensors"], metadata=metadata)
    partials["metrics.json"].write_text(json.dumps(report, indent=2) + "\n")
    partials["labels.txt"].write_text("".join(f"{name}\n" for name in settings.class_names), encoding="utf-8")
    for name, partial in partials.items():
        partial.replace(out / name)


def _command(num_processes: int, argv: list[str]) -> str:
    if num_processes == 1:
        return shlex.join(["rcnn-train", *argv])
    return shlex.join(
        ["torchrun", f"--nproc-per-node={num_processes}", "-m", "rcnn_export.commands.train", *argv]
    )
