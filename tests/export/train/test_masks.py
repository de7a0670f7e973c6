"""Training and scoring with masks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rcnn_export.commands import train
from rcnn_export.detector.load import build_detector, load_detector
from rcnn_export.digits.compose import compose_picture
from rcnn_export.digits.dataset import DigitsDataset, write_coco
from rcnn_export.digits.detector import digits_mask_detector
from rcnn_export.errors import ExportError
from rcnn_export.train.coco_dataset import CocoDataset, read
from rcnn_export.train.coco_eval import Detected, detect, found_records, score, truth_records
from rcnn_export.train.loop import Settings, Training
from rcnn_export.train.mirror import mirrored
from rcnn_export.train.processes import Processes
from rcnn_export.train.start import kind_built_by
from safetensors.torch import load_file
from torch import nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

SAMPLES = Path(__file__).parents[3] / "export" / "samples"
MASKS = "rcnn_export.digits.detector:digits_mask_detector"
BOXES = "rcnn_export.digits.detector:digits_detector"


def test_targets_have_the_masks_of_each_picture(tmp_path: Path) -> None:
    square = [[1, 2, 4, 2, 4, 5, 1, 5]]
    runs = {"size": [6, 8], "counts": [42, 6]}  # the last column
    boxes = [(2, square, [1, 2, 3, 3]), (1, runs, [7, 0, 1, 6]), (2, runs, [7, 0, 1, 6])]
    content = {
        "images": [{"id": each, "file_name": f"{each}.png", "width": 8, "height": 6} for each in (1, 2, 3)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"image_id": image, "category_id": 1, "bbox": bbox, "segmentation": segmentation}
            for image, segmentation, bbox in boxes
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    for each in (1, 2, 3):
        Image.new("L", (8, 6)).save(tmp_path / f"{each}.png")

    dataset = CocoDataset(read(tmp_path / "annotations.json", kind="segm"), tmp_path)
    first, second, third = (dataset[index][1]["masks"] for index in range(3))
    expected = torch.zeros((2, 6, 8), dtype=torch.uint8)
    expected[0, 2:5, 1:4] = 1
    expected[1, :, 7] = 1
    assert first.dtype == torch.uint8 and torch.equal(first, expected[1:])
    assert torch.equal(second, expected) and dataset[1][1]["boxes"].tolist()[0] == [1, 2, 4, 5]
    assert third.shape == (0, 6, 8)
    assert "masks" not in CocoDataset(tmp_path / "annotations.json", tmp_path)[0][1]


def test_mirroring_mirrors_the_masks_too() -> None:
    masks = torch.zeros((1, 2, 5), dtype=torch.uint8)
    masks[0, :, 0] = 1
    objects = {"boxes": torch.tensor([[0.0, 0, 1, 2]]), "labels": torch.tensor([3]), "masks": masks}
    picture, changed = mirrored(torch.arange(5.0).expand(3, 2, 5), objects, [])
    assert picture[0, 0].tolist() == [4, 3, 2, 1, 0]
    assert changed["boxes"].tolist() == [[4, 0, 5, 2]] and changed["labels"].tolist() == [3]
    assert changed["masks"][0].tolist() == [[0, 0, 0, 0, 1]] * 2


def test_the_sample_gives_the_ink_as_masks(tmp_path: Path) -> None:
    pixels, target = DigitsDataset("held-out", 4, kind="segm")[3]
    picture = compose_picture("held-out", 3)
    assert np.array_equal(target["masks"].numpy(), picture.masks)
    for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
        inside = mask[top:bottom, left:right]
        assert inside.sum() == mask.sum() and inside.any(0).all() and inside.any(1)[[0, -1]].all()
    assert "masks" not in DigitsDataset("held-out", 4)[3][1]
    # A COCO file gives the same masks.
    written = CocoDataset(read(write_coco(tmp_path, "held-out", [3]), kind="segm"), tmp_path)
    assert torch.equal(written[0][1]["masks"], target["masks"]) and written[0][0].shape == pixels.shape


def _detected(rows_found: int) -> Detected:
    """An object of ten rows, of which the box and a mask of some rows are found."""
    true, probabilities = torch.zeros((1, 20, 20), dtype=torch.uint8), torch.zeros((1, 1, 20, 20))
    true[0, :10], probabilities[0, 0, :rows_found] = 1, 0.6
    probabilities[0, 0, rows_found:] = 0.5  # 0.5 does not count as part of the object
    box, labels, area = torch.tensor([[0.0, 0, 20, 10]]), torch.tensor([1]), torch.tensor([200.0])
    target = {"labels": labels, "bbox": box, "area": area, "iscrowd": torch.tensor([False]), "masks": true}
    found = {"labels": labels, "boxes": box, "scores": torch.tensor([0.9]), "masks": probabilities}
    images = [{"id": 0, "height": 20, "width": 20}]
    return Detected(images, truth_records(0, target), found_records(0, found))


def test_masks_are_scored_in_addition_to_boxes() -> None:
    metrics = score([_detected(rows_found=7)], ["a"], kind="segm")
    assert metrics["ap"] == pytest.approx(1) and metrics["segm_ap"] == pytest.approx(0.5)  # IoU 0.7
    assert (metrics["segm_ap50"], metrics["segm_ap75"]) == (pytest.approx(1), 0)
    assert metrics["segm_ap_per_class"] == {"a": pytest.approx(0.5)}
    assert "segm_ap" not in score([_detected(rows_found=7)], ["a"])


def test_nothing_found_scores_zero() -> None:
    part = _detected(rows_found=7)
    part.found.clear()
    assert score([part], ["a"], kind="segm")["segm_ap"] == 0
    empty = {"labels": torch.zeros(0), "boxes": torch.zeros((0, 4)), "scores": torch.zeros(0)}
    assert found_records(0, {**empty, "masks": torch.zeros((0, 1, 20, 20))}) == []


def test_a_mask_rcnn_is_trained_from_a_faster_rcnn_and_chosen_by_its_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    written = write_coco(data, "train", [0])
    files = [str(written), str(data)]
    run = ["--train", *files, "--val", *files, "--model", MASKS, "--batch-size", "1", "--horizontal-flip"]
    run += ["--device", "cpu", "--workers", "0", "--out", str(tmp_path)]
    scores = iter([(0.2, 0.5), (0.9, 0.4)])  # of boxes and of masks

    def evaluate(*_: object) -> dict[str, object]:
        names = ("", "50", "75")
        of_boxes, of_masks = next(scores)
        aps = {f"ap{name}": of_boxes for name in names} | {f"segm_ap{name}": of_masks for name in names}
        return {"loss": 1.0, "pictures_per_s": 1.0, **aps}

    weights = ["--weights", str(SAMPLES / "digits.safetensors")]
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", evaluate)
        assert train.main([*run, *weights, "--epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "boxes with masks" in out and "has no roi_heads.mask_..., which keeps its initial weights" in out
    assert "mask AP50:95 0.5000" in out and "best mask AP50:95 0.5000" in out
    assert json.loads((tmp_path / "metrics.json").read_text())["epoch"] == 1

    tuned = load_file(tmp_path / "weights.safetensors")
    fresh = digits_mask_detector(3).state_dict()
    assert tuned.keys() == fresh.keys()
    given = load_file(SAMPLES / "digits.safetensors")
    name = "backbone.body.stem.0.1.running_mean"
    assert torch.equal(tuned[name], given[name])


def test_a_model_that_finds_masks_is_recognised() -> None:
    assert kind_built_by("maskrcnn_resnet50_fpn_v2") == kind_built_by(MASKS) == "segm"
    assert kind_built_by("fasterrcnn_resnet50_fpn") == kind_built_by(BOXES) == "bbox"


def test_a_mask_head_is_refused_where_it_would_be_lost() -> None:
    assert build_detector(MASKS, 3).roi_heads.has_mask()
    with pytest.raises(ExportError, match="returned a MaskRCNN"):
        build_detector(MASKS, 3, "faster_rcnn")


def test_a_file_with_a_part_of_a_mask_head_does_not_start_anew(tmp_path: Path) -> None:
    state = digits_mask_detector().state_dict()
    del state["roi_heads.mask_predictor.mask_fcn_logits.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        ExportError, match=r"1 tensors are missing .* roi_heads\.mask_predictor\.mask_fcn_logits"
    ):
        load_detector(MASKS, str(tmp_path / "w.pth"), starts_anew="roi_heads.mask_")


def test_the_statistics_of_a_head_that_starts_anew_are_learnt() -> None:
    model = build_detector(MASKS, 3)
    model.roi_heads.mask_head = MaskRCNNHeads(64, (64,), 1, nn.BatchNorm2d)
    for norm in model.backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.fill_(0.5)
    settings = Settings(MASKS, "w.pth", ["a", "b"], 1, 1, 1, 1e-4, 0.0, False, False, 0, 1)
    training = Training(model, settings, Processes("cpu"))
    is_trained = {
        name: norm.weight.requires_grad
        for name, norm in model.named_modules()
        if isinstance(norm, nn.BatchNorm2d)
    }
    assert training.kind == "segm" and sum(is_trained.values()) == 1
    assert all(trained == name.startswith("roi_heads.mask_head") for name, trained in is_trained.items())


def test_the_sample_weights_find_masks() -> None:
    path = SAMPLES / "digits_mask.safetensors"
    assert path.stat().st_size < 12e6
    model = load_detector(MASKS, str(path), labels=SAMPLES / "labels.txt").model
    data = DigitsDataset("held-out", 3, kind="segm")
    metrics = score(
        [detect(model, enumerate(data[index] for index in range(3)))], data.class_names, kind="segm"
    )
    assert metrics["segm_ap"] > 0.6 and metrics["segm_ap50"] > 0.9
