"""Keypoint R-CNNs load like other detectors, with the number of keypoints that their weights have, and with names."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rcnn_export.detector.labels import BACKGROUND, read_keypoint_names
from rcnn_export.detector.load import COCO_KEYPOINTS, build_detector, check_detector, load_detector
from rcnn_export.detector.shapes import num_keypoints_of
from rcnn_export.detector.weights import _trained_eps
from rcnn_export.digits.detector import digits_detector, digits_keypoint_detector, digits_mask_detector
from rcnn_export.errors import ExportError
from torch import nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, KeypointRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

DIGITS = "rcnn_export.digits.detector:digits_keypoint_detector"
BOXES = "rcnn_export.digits.detector:digits_detector"

Build = Callable[..., FasterRCNN]


@pytest.fixture
def model(build: Build) -> KeypointRCNN:
    """A model that finds 3 keypoints in each box."""
    plain = build()
    return KeypointRCNN(
        plain.backbone,
        rpn_anchor_generator=plain.rpn.anchor_generator,
        box_roi_pool=plain.roi_heads.box_roi_pool,
        box_head=plain.roi_heads.box_head,
        box_predictor=plain.roi_heads.box_predictor,
        keypoint_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
        keypoint_head=KeypointRCNNHeads(4, (8,)),
        keypoint_predictor=KeypointRCNNPredictor(8, 3),
        min_size=64,
        max_size=96,
    ).eval()


def test_a_detector_has_the_keypoints_of_its_weights(tmp_path: Path) -> None:
    torch.save(digits_keypoint_detector(3, 5).state_dict(), tmp_path / "w.pth")
    detector = load_detector(DIGITS, str(tmp_path / "w.pth"), family="keypoint_rcnn")
    assert num_keypoints_of(detector.model) == 5 and detector.keypoint_names == list("01234")
    (tmp_path / "names.txt").write_text("a\nb\n\nc\nd\n e \n")
    named = load_detector(DIGITS, str(tmp_path / "w.pth"), keypoints=tmp_path / "names.txt")
    assert named.keypoint_names == list("abcde")
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(
        ExportError, match=r"names\.txt names 2 keypoints, but .* finds 5: give one name per line"
    ):
        load_detector(DIGITS, str(tmp_path / "w.pth"), keypoints=tmp_path / "names.txt")
    # Without weights, the number of names is used.
    built = load_detector(DIGITS, "builder", keypoints=tmp_path / "names.txt")
    assert num_keypoints_of(built.model) == 2 and built.keypoint_names == ["a", "b"]


@pytest.mark.long
def test_torchvisions_builder_has_any_number_of_keypoints() -> None:
    model = build_detector("keypointrcnn_resnet50_fpn", 3, "keypoint_rcnn", num_keypoints=4)
    assert num_keypoints_of(model) == 4
    assert len(COCO_KEYPOINTS) == 17 and COCO_KEYPOINTS[:2] == ["nose", "left_eye"]


def test_the_eps_of_the_published_weights() -> None:
    weights = KeypointRCNN_ResNet50_FPN_Weights
    assert _trained_eps(weights.COCO_V1) == 0 and _trained_eps(weights.COCO_LEGACY) is None


def test_published_weights_call_label_0_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(digits_keypoint_detector(2, 17).state_dict(), tmp_path / "w.pth")
    published = KeypointRCNN_ResNet50_FPN_Weights.COCO_LEGACY
    monkeypatch.setattr("rcnn_export.detector.weights.published_weights_of", lambda path: published)
    detector = load_detector(DIGITS, str(tmp_path / "w.pth"))
    assert detector.class_names == [BACKGROUND, "person"] and detector.keypoint_names == COCO_KEYPOINTS


def test_keypoint_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(ExportError, match=r"names 2 keypoints, but .* finds none: leave the names out"):
        load_detector(BOXES, "builder", keypoints=tmp_path / "names.txt")
    with pytest.raises(
        ExportError, match=r"the keypoints file .* is empty: write .* with one keypoint name per line"
    ):
        (tmp_path / "names.txt").write_text("")
        read_keypoint_names(tmp_path / "names.txt")


def test_a_function_decides_its_keypoints_by_a_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_keypoints.py").write_text(
        "from rcnn_export.digits.detector import digits_keypoint_detector\n"
        "def fixed(num_classes=2):\n"
        "    return digits_keypoint_detector(num_classes, 3)\n"
        "def needs(num_keypoints):\n"
        "    return digits_keypoint_detector(2, num_keypoints)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ExportError, match="of 3 keypoints, but 2 were asked for: give the function a parameter"
    ):
        build_detector("own_keypoints:fixed", num_keypoints=2)
    assert num_keypoints_of(build_detector("own_keypoints:needs", num_keypoints=2)) == 2
    with pytest.raises(
        ExportError, match="needs num_keypoints: give --keypoints, or give the parameter a def"
    ):
        build_detector("own_keypoints:needs")


def test_weights_of_another_family_are_named(tmp_path: Path) -> None:
    torch.save(digits_mask_detector().state_dict(), tmp_path / "mask.pth")
    with pytest.raises(
        ExportError, match=r"they are a Mask R-CNN's weights .*, and this is a Keypoint R-CNN"
    ):
        load_detector(DIGITS, str(tmp_path / "mask.pth"))
    torch.save(digits_keypoint_detector().state_dict(), tmp_path / "keypoint.pth")
    with pytest.raises(
        ExportError, match=r"they are a Keypoint R-CNN's weights .*, and this is a Faster R-CNN"
    ):
        load_detector(BOXES, str(tmp_path / "keypoint.pth"))
    torch.save(digits_detector().state_dict(), tmp_path / "boxes.pth")
    with pytest.raises(ExportError, match=r"missing in the file \(the first: roi_heads\.keypoint_head"):
        load_detector(DIGITS, str(tmp_path / "boxes.pth"))


class Doubled(MultiScaleRoIAlign):
    def forward(self, *args: object) -> torch.Tensor:
        return 2 * super().forward(*args)


def test_keypoint_branches_that_would_answer_otherwise_are_refused(model: KeypointRCNN) -> None:
    check_detector(model)
    heads = model.roi_heads
    heads.keypoint_roi_pool.__class__ = Doubled
    with pytest.raises(
        ExportError, match=r"Doubled\.forward of roi_heads\.keypoint_roi_pool is not torchvis"
    ):
        check_detector(model)
    heads.keypoint_roi_pool = MultiScaleRoIAlign(["1"], 4, 2)
    with pytest.raises(
        ExportError, match=r"keypoint_roi_pool pools the feature maps \['1'\] and box_roi_pool"
    ):
        check_detector(model)
    heads.keypoint_roi_pool = MultiScaleRoIAlign(["0"], (4, 3), 2)
    with pytest.raises(
        ExportError, match=r"gives a tensor \[2, 3, 16, 12\] for two RoIs: .* a square heatmap"
    ):
        check_detector(model)
    heads.keypoint_roi_pool = MultiScaleRoIAlign(["0"], 4, 2)
    heads.keypoint_predictor = nn.Flatten()
    with pytest.raises(ExportError, match=r"keypoint_predictor gives a tensor \[2, 128\] for two RoIs"):
        check_detector(model)
    heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = nn.Identity()
    heads.keypoint_predictor = KeypointRCNNPredictor(8, 3)
    with pytest.raises(ExportError, match="has a mask head: keypoint_rcnn exports boxes and keypoints only"):
        check_detector(model)
    heads.mask_predictor = heads.keypoint_predictor = None
    with pytest.raises(ExportError, match="is a KeypointRCNN without a keypoint head: set keypoint_roi_pool"):
        check_detector(model)
