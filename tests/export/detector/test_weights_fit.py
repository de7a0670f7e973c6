"""Weights that do not fit: the error names the tensors, the family of the weights, or the builder that they fit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rcnn_export.detector import weights as weights_module
from rcnn_export.detector.batch_norm import report_open_eps, set_batch_norm_eps
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.detector.weights_fit import fitting_builders, load_into
from rcnn_export.errors import ExportError
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import FasterRCNN_MobileNet_V3_Large_320_FPN_Weights

# A model on the meta device has names and shapes but needs no time and no memory for its weights.
pytestmark = pytest.mark.filterwarnings("ignore:.*which is a no-op:UserWarning")

DIGITS = "rcnn_export.digits.detector:digits_detector"
MOBILE = "fasterrcnn_mobilenet_v3_large_320_fpn"
V1, V2 = "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"


def on_meta(builder: str, num_classes: int = 91) -> nn.Module:
    with torch.device("meta"):
        return models.get_model(builder, weights=None, weights_backbone=None, num_classes=num_classes)


def state_of(builder: str, num_classes: int = 91) -> dict[str, Tensor]:
    """The names and shapes of a builder's tensors, with zeros for values."""
    return {
        name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        for name, tensor in on_meta(builder, num_classes).state_dict().items()
    }


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        (V1, [V1]),
        (V2, [V2]),
        (MOBILE, [MOBILE, "fasterrcnn_mobilenet_v3_large_fpn"]),  # these two differ only in picture sizes
        ("maskrcnn_resnet50_fpn", []),
    ],
)
def test_the_builders_that_weights_fit(builder: str, expected: list[str]) -> None:
    assert fitting_builders(state_of(builder, num_classes=7)) == expected


def test_weights_of_another_builder_name_the_one_they_fit() -> None:
    with pytest.raises(ExportError, match=f"w.pth do not fit {V1}: .* They fit --model {V2}$"):
        load_into(on_meta(V1), state_of(V2), V1, "w.pth", print)


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("maskrcnn_resnet50_fpn", r"they are a Mask R-CNN's weights \(roi_heads\.mask_\.\.\.\)"),
        ("keypointrcnn_resnet50_fpn", r"they are a Keypoint R-CNN's weights"),
    ],
)
def test_weights_of_another_family(builder: str, message: str) -> None:
    classes = 91 if builder.startswith("mask") else 2
    with pytest.raises(ExportError, match=message):
        load_into(on_meta(V1, classes), state_of(builder, classes), V1, "w.pth", print)


def _other_classes(state: dict[str, Tensor]) -> None:
    state["roi_heads.box_predictor.cls_score.weight"] = torch.ones(4, 256)
    state["roi_heads.box_predictor.cls_score.bias"] = torch.ones(4)


def _parameters_only(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if "running_" in name or "num_batches" in name]:
        del state[name]


def _renamed(state: dict[str, Tensor]) -> None:
    state["backbone.stem"] = state.pop("backbone.body.stem.0.0.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _other_classes,
            r"roi_heads\.box_predictor\.cls_score\.weight is \[4, 256\] in the file and \[11, 256\] in the model, "
            "and 1 more have other shapes",
        ),
        (_parameters_only, "no statistics of batch normalisation: save model.state_dict"),
        (
            _renamed,
            r"1 tensors are missing in the file \(the first: backbone\.body\.stem\.0\.0\.weight\); 1 tensors of the "
            r"file are not in the model \(the first: backbone\.stem\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], None], message: str, digits: Detector
) -> None:
    state = dict(digits.model.state_dict())
    change(state)
    with pytest.raises(ExportError, match=message):
        load_into(digits.model, state, DIGITS, "w.pth", print)


@pytest.mark.parametrize(
    ("recorded", "given", "expected"),
    [(None, None, 1e-5), ("0.0", None, 0.0), ("0.0", 1e-3, 1e-3), (None, 0.0, 0.0)],
)
def test_eps_is_as_given_else_as_recorded(
    recorded: str | None, given: float | None, expected: float, digits: Detector, tmp_path: Path
) -> None:
    metadata = {"batch_norm_eps": recorded} if recorded else None
    save_file(digits.model.state_dict(), tmp_path / "w.safetensors", metadata=metadata)
    loaded = load_detector(DIGITS, str(tmp_path / "w.safetensors"), batch_norm_eps=given)
    assert loaded.batch_norm_eps == expected


def test_eps_that_is_no_number_is_refused(digits: Detector, tmp_path: Path) -> None:
    save_file(digits.model.state_dict(), tmp_path / "w.safetensors", metadata={"batch_norm_eps": "-1"})
    with pytest.raises(ExportError, match="records batch_norm_eps '-1': expected a number, 0 or more"):
        load_detector(DIGITS, str(tmp_path / "w.safetensors"))
    with pytest.raises(ExportError, match="has no batch normalisation"):
        set_batch_norm_eps(nn.Conv2d(1, 1, 1), 0.0)


def test_an_unknown_eps_is_reported_only_for_the_v1_builder(digits: Detector) -> None:
    lines: list[str] = []
    for model in (on_meta(V2), on_meta(MOBILE), digits.model):
        report_open_eps(model, "w.pth", lines.append)
    assert not lines
    model = on_meta(V1, num_classes=3)
    report_open_eps(model, "w.pth", lines.append)
    assert len(lines) == 1
    assert lines[0].startswith(
        "w.pth does not record the eps of batch normalisation: the model's own, 1e-05, is used"
    )
    assert lines[0].endswith("give --batch-norm-eps 0")
    set_batch_norm_eps(model, 0.0)
    report_open_eps(model, "w.pth", lines.append)
    assert len(lines) == 1


def test_a_name_before_a_file_and_a_file_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1
    monkeypatch.setattr(weights_module, "_download", lambda weights: {"downloaded": torch.ones(1)})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DEFAULT").write_bytes(b"<html>")
    for name in ("DEFAULT", "COCO_V1", "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1"):
        found = weights_module.find_weights(MOBILE, name, None, print)
        assert found and found.published is published and found.batch_norm_eps is None
    with pytest.raises(ExportError, match="it is an HTML page"):
        weights_module.find_weights(MOBILE, "./DEFAULT", None, print)
    with pytest.raises(ExportError, match=r"has no weights 'FasterRCNN_ResNet50_FPN_Weights\.COCO_V1'"):
        weights_module.find_weights(MOBILE, "FasterRCNN_ResNet50_FPN_Weights.COCO_V1", None, print)
    found = weights_module.find_weights(V1, "DEFAULT", None, print)
    assert found and found.batch_norm_eps == 0.0  # torchvision overwrites the eps for these weights


def test_a_function_has_no_published_weights() -> None:
    with pytest.raises(ExportError, match="a function of yours, which has no published weights 'DEFAULT'"):
        load_detector(DIGITS, "DEFAULT")
