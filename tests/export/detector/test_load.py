"""Models and weights load as in torchvision, or the error says what does not fit."""

import sys
from pathlib import Path

import pytest
import torch
from rcnn_export.detector import weights as weights_module
from rcnn_export.detector.load import BACKGROUND, build_detector, load_detector
from rcnn_export.errors import ExportError
from safetensors.torch import save_file
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_resnet50_fpn,
)
from torchvision.ops.misc import FrozenBatchNorm2d

MOBILE = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights for five classes as .pth, as .safetensors and as a training checkpoint."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(7)
    state = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=5
    ).state_dict()
    torch.save(state, folder / "w.pth")
    torch.save({"model": state, "epoch": 3}, folder / "checkpoint.pth")
    save_file(state, folder / "w.safetensors")
    return {path.name: path for path in folder.iterdir()}


def test_every_file_format_gives_the_same_detector(weights: dict[str, Path]) -> None:
    hashes = {load_detector(MOBILE, str(path)).weights_hash for path in weights.values()}
    assert len(hashes) == 1
    assert load_detector(MOBILE, str(weights["w.pth"])).class_names[0] == BACKGROUND


def test_random_weights_are_seeded() -> None:
    assert load_detector(MOBILE).weights_hash == load_detector(MOBILE).weights_hash


def test_labels_name_the_classes(weights: dict[str, Path], tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nhen\ncow\n")
    loaded = load_detector(MOBILE, str(weights["w.pth"]), labels=labels)
    assert loaded.class_names == [BACKGROUND, "cat", "dog", "hen", "cow"]
    labels.write_text("cat\ndog\n")
    with pytest.raises(ExportError, match=r"for 5 classes .* but 3 were asked for"):
        load_detector(MOBILE, str(weights["w.pth"]), labels=labels)
    with pytest.raises(ExportError, match=r"names 2 classes, but .* has 4"):
        load_detector(MOBILE, str(weights["w.pth"]), num_classes=5, labels=labels)


def test_frozen_batch_norm_weights_load(tmp_path: Path) -> None:
    state = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=5
    ).state_dict()
    torch.save(
        {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "frozen.pth"
    )
    assert len(load_detector(MOBILE, str(tmp_path / "frozen.pth")).class_names) == 5


def test_a_copy_of_the_published_v1_weights_gets_their_eps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    torch.save(state, tmp_path / "coco.pth")
    published = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    monkeypatch.setattr(weights_module, "published_weights_of", lambda path: published)
    loaded = load_detector("fasterrcnn_resnet50_fpn", str(tmp_path / "coco.pth"))
    norms = [m for m in loaded.model.modules() if isinstance(m, (torch.nn.BatchNorm2d, FrozenBatchNorm2d))]
    assert norms
    assert loaded.class_names[1] == "person"
    assert {norm.eps for norm in norms} == {0.0}
    frozen = FrozenBatchNorm2d(64, eps=0.0)
    frozen.load_state_dict(loaded.model.backbone.body.bn1.state_dict())
    picture = torch.rand(1, 64, 8, 8)
    torch.testing.assert_close(loaded.model.backbone.body.bn1(picture), frozen(picture), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet",), "unknown model 'resnet'"),
        (("no.such:function",), "cannot import no.such:function"),
        ((MOBILE, "missing.pth"), "no weights file missing.pth"),
        ((MOBILE, "COCO_V7"), "has no weights 'COCO_V7': give one of COCO_V1"),
    ],
)
def test_what_does_not_exist_is_named(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        load_detector(*arguments)


def test_weights_of_another_model_and_no_weights_at_all(weights: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="do not fit fasterrcnn_resnet50_fpn"):
        load_detector("fasterrcnn_resnet50_fpn", str(weights["w.pth"]))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ExportError, match="holds no state dict"):
        load_detector(MOBILE, str(tmp_path / "list.pth"))
    for name in ("noise.pth", "noise.safetensors"):
        (tmp_path / name).write_bytes(b"noise" * 100)
        with pytest.raises(ExportError, match=f"cannot read the weights .*{name}"):
            load_detector(MOBILE, str(tmp_path / name))


def test_a_function_in_the_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as build\n"
        "def mine(num_classes=3):\n"
        "    return build(weights=None, weights_backbone=None, num_classes=num_classes)\n"
        "def wrong():\n"
        "    return 'a detector'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert build_detector("my_models:mine").roi_heads.box_predictor.cls_score.out_features == 3
    assert build_detector("my_models:mine", 7).roi_heads.box_predictor.cls_score.out_features == 7
    with pytest.raises(ExportError, match="returned str, expected"):
        build_detector("my_models:wrong")
