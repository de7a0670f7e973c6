"""A user's function is called and its detector is taken out of wrappers, or the error names the true cause."""

import sys
from pathlib import Path

import pytest
import torch
from rcnn_export.detector.load import build_detector, load_detector
from rcnn_export.detector.weights import AS_BUILT
from rcnn_export.errors import ExportError

SOURCE = """
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

def build(num_classes=3):
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 8, 1))
    backbone.out_channels = 4
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=TwoMLPHead(4 * 9, 16),
        box_predictor=FastRCNNPredictor(16, num_classes),
        min_size=64,
        max_size=96,
    )

def any_arguments(**arguments):
    return build(**arguments)

def three_classes():
    return build(3)

def half():
    return build().half().to(memory_format=torch.channels_last)

def data_parallel():
    return nn.DataParallel(build())

def compiled():
    model = torch.compile(build())
    model.backbone = torch.compile(model.backbone)
    model.roi_heads.compile()
    return model

def constant():
    model = build()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.25)
    return model

def no_file():
    return torch.load("absent.pth")

def leaves():
    raise SystemExit("no data set")

def needs_more(width, num_classes=3): ...
def needs_classes(num_classes): ...
def a_pair():
    return build(), "a note"
a_model = build()
"""


@pytest.fixture(autouse=True)
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the module ``own_models`` into the working directory."""
    (tmp_path / "own_models.py").write_text(SOURCE)
    (tmp_path / "own_broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


@pytest.mark.parametrize("function", ["half", "data_parallel", "compiled"])
def test_a_wrapped_detector_is_the_plain_one(function: str) -> None:
    plain = build_detector("own_models:build").state_dict()
    unwrapped = build_detector(f"own_models:{function}").state_dict()
    assert list(unwrapped) == list(plain)
    assert all(torch.allclose(tensor, plain[name], atol=1e-3) for name, tensor in unwrapped.items())
    assert all(tensor.dtype == plain[name].dtype for name, tensor in unwrapped.items())


def test_the_number_of_classes_is_passed_to_functions_that_take_it() -> None:
    assert len(load_detector("own_models:any_arguments", num_classes=6).class_names) == 6
    with pytest.raises(ExportError, match="returned a detector of 3 classes, but 6 were asked for"):
        build_detector("own_models:three_classes", 6)


def test_the_weights_that_a_function_gives_are_kept() -> None:
    kept = load_detector("own_models:constant", AS_BUILT).model
    assert all((parameter == 0.25).all() for parameter in kept.parameters())
    with pytest.raises(
        ExportError, match=r"own_models:constant is a function of yours, .* builder for the weights"
    ):
        load_detector("own_models:constant", "DEFAULT")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_models:no_file", r"raised FileNotFoundError: .*absent\.pth"),
        ("own_models:leaves", "raised SystemExit: no data set"),
        (
            "own_models:needs_more",
            "needs the arguments width, but it is called with num_classes and num_keypoints alone",
        ),
        ("own_models:needs_classes", "needs num_classes: give --num-classes or --labels"),
        ("own_models:a_pair", r"returned tuple, expected torchvision\.models\.detection\.FasterRCNN"),
        ("own_models:a_model", "is not a function but a FasterRCNN"),
        ("own_models:SOURCE", "cannot import own_models:SOURCE: .* no attribute 'SOURCE'"),
        ("own_broken:build", "cannot import own_broken:build: ZeroDivisionError: division by zero"),
    ],
)
def test_the_true_cause_is_named(path: str, message: str) -> None:
    with pytest.raises(ExportError, match=message) as refused:
        build_detector(path)
    assert "\n" not in str(refused.value)
