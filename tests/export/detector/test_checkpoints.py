"""Every common kind of checkpoint loads like the plain state dict inside it, and runs no code."""

import argparse
import collections
import copy
import datetime
import os
import subprocess
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from rcnn_export.detector.load import Detector, build_detector, load_detector
from rcnn_export.engines.graph_checks import clean_graph
from rcnn_export.engines.onnx_export import export_onnx
from rcnn_export.engines.precision import FP32
from rcnn_export.engines.stages import engine_stages
from rcnn_export.errors import ExportError
from safetensors.torch import save_file
from torch import Tensor, nn

DIGITS = "rcnn_export.digits.detector:digits_detector"

State = dict[str, Tensor]


class Config(dict):  # type: ignore[type-arg]
    """A class that exists only in the training code."""


class Empty:
    """An object without attributes."""


@pytest.fixture(scope="module")
def state(digits: Detector) -> State:
    return dict(digits.model.state_dict())


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: State) -> State:
    """Other weights of the same detector."""
    return {name: tensor + 1 for name, tensor in state.items()}


def reference(state: State) -> dict[str, Any]:
    """A checkpoint as torchvision's references/detection/train.py saves it."""
    parameters = [nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9)
    parameters[0].grad = torch.ones(2)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[16, 22])  # holds a Counter
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(data_path=PurePosixPath("/data"), lr=0.02, device=torch.device("cuda")),
        "epoch": 25,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
    }


def average(state: State) -> State:
    """The state dict of a torch.optim.swa_utils.AveragedModel."""
    return {"n_averaged": torch.tensor(9), **prefixed("module.", state)}


def lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**prefixed("model.", state), "metric.total": torch.ones(1)},
        "hyper_parameters": {"config": Config(lr=0.1), "root": PurePosixPath("/data")},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "loops": collections.defaultdict(list, {"fit": [1]}),
    }


def beside_other_objects(state: State) -> dict[str, Any]:
    return {
        "net": state,
        "score": np.float64(0.5),
        "losses": np.arange(3),
        "recent": collections.deque([1.0, 2.0]),
        "started": datetime.datetime(2024, 1, 1),
        "config": Config(model=Config(depth=50)),
        "empty": Empty(),
        "function": subprocess.run,
    }


def whole_model(state: State) -> nn.Module:
    model = build_detector(DIGITS)
    model.load_state_dict(state)
    return model


KINDS: dict[str, Callable[[State], Any]] = {
    "plain.pth": lambda state: state,
    "reference.pth": reference,
    "reference_with_average.pth": lambda state: {**reference(state), "model_ema": average(other(state))},
    "model_state_dict.pt": lambda state: {"model_state_dict": state, "loss": 0.1},
    "lightning.ckpt": lightning,
    "lightning_with_average.ckpt": lambda state: {
        "state_dict": {**prefixed("model.", state), **prefixed("ema_model.", other(state))}
    },
    "data_parallel.pth.tar": lambda state: {"state_dict": prefixed("module.", state), "best_acc1": 0.5},
    "compiled.bin": lambda state: prefixed("_orig_mod.", state),
    "compiled_data_parallel": lambda state: prefixed("_orig_mod.module.", state),
    "data_parallel_lightning.tar": lambda state: {"state_dict": prefixed("model.module._orig_mod.", state)},
    "own_prefix.pth": lambda state: prefixed("net.detector.", state),
    "compiled_backbone.pth": lambda state: {
        name.replace("backbone.", "backbone._orig_mod."): tensor for name, tensor in state.items()
    },
    "averages_only.pth": lambda state: {"ema": average(state)},
    "teacher_and_student.pth": lambda state: {
        "state_dict": {**prefixed("teacher.", other(state)), **prefixed("student.", state)}
    },
    "one_dict_twice.pth": lambda state: {"best": state, "last": state},
    "parameters.pth": lambda state: {
        name: nn.Parameter(tensor) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    },
    "other_objects.pth": beside_other_objects,
    "whole_model.pth": whole_model,
    "whole_parallel_model.pth": lambda state: {
        "ema": whole_model(other(state)),
        "model": nn.DataParallel(whole_model(state)),
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_loads_as_the_plain_state_dict(
    name: str, state: State, digits: Detector, tmp_path: Path
) -> None:
    torch.save(KINDS[name](state), tmp_path / name)
    loaded = load_detector(DIGITS, str(tmp_path / name))
    assert loaded.weights_hash == digits.weights_hash
    assert loaded.batch_norm_eps == digits.batch_norm_eps


@pytest.mark.parametrize("name", ["plain.pth", "reference_with_average.pth", "lightning.ckpt"])
def test_the_old_format_of_torch_save_loads(
    name: str, state: State, digits: Detector, tmp_path: Path
) -> None:
    torch.save(KINDS[name](state), tmp_path / name, _use_new_zipfile_serialization=False)
    assert load_detector(DIGITS, str(tmp_path / name)).weights_hash == digits.weights_hash


@pytest.mark.parametrize("name", ["weights.safetensors", "named_otherwise.pth", "no_ending"])
def test_safetensors_are_known_by_their_content(
    name: str, state: State, digits: Detector, tmp_path: Path
) -> None:
    save_file(prefixed("module.", state), tmp_path / name)
    assert load_detector(DIGITS, str(tmp_path / name)).weights_hash == digits.weights_hash
    torch.save(state, tmp_path / "torch.safetensors")
    assert load_detector(DIGITS, str(tmp_path / "torch.safetensors")).weights_hash == digits.weights_hash


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_converted(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    torch.save({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "w.pth")
    loaded = load_detector(DIGITS, str(tmp_path / "w.pth")).model.state_dict()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor.to(dtype).to(tensor.dtype), rtol=0, atol=0)


@pytest.mark.xdist_group("export")
@pytest.mark.long
def test_a_checkpoint_exports_to_the_engine_of_the_plain_state_dict(
    state: State, tmp_path: Path, digits_repository: Path
) -> None:
    torch.save(KINDS["reference_with_average.pth"](state), tmp_path / "checkpoint.pth")
    model = load_detector(DIGITS, str(tmp_path / "checkpoint.pth")).model
    header = list(engine_stages(model, FP32))[-1]  # the smallest stage
    expected = (digits_repository / f"digits_{header.name}" / "1" / "model.onnx").read_bytes()
    assert clean_graph(export_onnx(header)).SerializeToString() == expected


def report_of(path: Path, **options: Any) -> tuple[Detector, str]:
    lines: list[str] = []
    return load_detector(DIGITS, str(path), report=lines.append, **options), "\n".join(lines)


def test_it_says_what_was_taken(state: State, digits: Detector, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save(state, path)
    assert report_of(path)[1] == ""
    torch.save(lightning(state), path)
    assert report_of(path)[1] == (
        f"{path}: took state_dict and removed the prefix model. from the names\n"
        f"{path}: tensors left out because they are not the detector's: 1"
    )
    torch.save({"model": prefixed("module.", state), "model_ema": average(other(state))}, path)
    assert report_of(path)[1] == (
        f"{path}: took model and removed the prefix module. from the names\n"
        f"{path} also holds model_ema (EMA: an average over training): give --weights-key model_ema to take that"
    )


def test_a_key_chooses(state: State, digits: Detector, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save({"model": other(state), "callbacks": {"ema": [average(state)]}}, path)
    loaded, report = report_of(path, weights_key="callbacks.ema")
    assert loaded.weights_hash == digits.weights_hash and loaded.weights_key == "callbacks.ema"
    assert (
        f"{path}: took callbacks.ema.0 (EMA: an average over training) and removed the prefix module."
        in report
    )
    with pytest.raises(
        ExportError, match=r"no detector under --weights-key emas: it has model, callbacks\.ema\.0"
    ):
        report_of(path, weights_key="emas")
    with pytest.raises(
        ExportError, match="--weights-key ema chooses within a file, and random is not a file"
    ):
        load_detector(DIGITS, "random", weights_key="ema")

    torch.save({"first": state, "second": other(state)}, path)
    with pytest.raises(ExportError, match="several detectors, first, second: choose one with --weights-key"):
        report_of(path)
    assert report_of(path, weights_key="first")[0].weights_hash == digits.weights_hash


class Hostile:
    """Runs a function when pickle loads it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_in_a_file_is_run(new_format: bool, state: State, digits: Detector, tmp_path: Path) -> None:
    path, proof = tmp_path / "hostile.pth", tmp_path / "proof"
    for function, argument in (
        (exec, f"open({str(proof)!r}, 'w')"),
        (subprocess.check_call, ["touch", str(proof)]),
    ):
        content = {"model": state, "callback": Hostile(function, argument)}
        torch.save(content, path, _use_new_zipfile_serialization=new_format)
        assert load_detector(DIGITS, str(path)).weights_hash == digits.weights_hash

    torch.save({"model": state, "x": Hostile(os.system, f"touch {proof}")}, path)
    with pytest.raises(ExportError, match=r"it tries to call posix\.system, which no weights need"):
        load_detector(DIGITS, str(path))
    assert not proof.exists()


def test_a_whole_model_keeps_its_eps(state: State, tmp_path: Path) -> None:
    model = copy.deepcopy(whole_model(state))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
    torch.save(model, tmp_path / "model.pth")
    assert load_detector(DIGITS, str(tmp_path / "model.pth")).batch_norm_eps == 0.0
