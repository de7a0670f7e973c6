"""An export is complete or does not happen, and one repository can hold several detectors."""

import json
import re
import shutil
from pathlib import Path

import onnx
import pytest
from rcnn_backend.contract.chain import FASTER_RCNN, MASK_RCNN
from rcnn_export.commands.export import main
from rcnn_export.detector.load import Detector
from rcnn_export.errors import ExportError
from rcnn_export.repository import configs, names
from rcnn_export.repository import write as repository_module
from rcnn_export.repository.write import export_repository
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign


def detector_of(kind: type[FasterRCNN], **heads: nn.Module) -> Detector:
    """A detector with one feature map and two classes, which exports quickly."""
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 8, 1))
    backbone.out_channels = 4
    model = kind(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=TwoMLPHead(4 * 9, 16),
        box_predictor=FastRCNNPredictor(16, 3),
        min_size=64,
        max_size=96,
        **heads,
    )
    return Detector(model.eval(), "small", "random", ["background", "cat", "dog"])


@pytest.fixture(scope="module")
def boxes() -> Detector:
    return detector_of(FasterRCNN)


@pytest.fixture(scope="module")
def masks() -> Detector:
    return detector_of(
        MaskRCNN,
        mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        mask_head=MaskRCNNHeads(4, (4,), 1),
        mask_predictor=MaskRCNNPredictor(4, 4, 3),
    )


@pytest.fixture
def instant_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export a small graph in place of each engine, because these tests are about the folders around it."""
    graph = onnx.parser.parse_graph("g (float[2] x) => (float[2] y) { y = Neg (x) }")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    monkeypatch.setattr(repository_module, "export_onnx", lambda stage: model)


def snapshot(repository: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in repository.rglob("*")
        if path.is_file()
    }


@pytest.mark.xdist_group("export")
def test_everything_is_written(digits_repository: Path, digits: Detector) -> None:
    written = snapshot(digits_repository)
    for model in FASTER_RCNN.model_names("digits"):
        assert f"{model}/config.pbtxt" in written
        assert any(name.startswith(f"{model}/1/model.") for name in written) or model in (
            "digits",
            "digits_pixels",
        )
        assert (digits_repository / model / "1").is_dir()
    for ensemble in ("digits", "digits_pixels"):
        assert written[f"{ensemble}/labels.txt"].decode().splitlines() == digits.class_names
    for stage in ("rpn", "header"):
        manifest = json.loads(written[f"digits_{stage}/1/manifest.json"])
        assert manifest["weights_sha256"] == digits.weights_hash
        assert manifest["precision"] == "fp32"
        onnx.checker.check_model(written[f"digits_{stage}/1/model.onnx"])


def test_detectors_share_a_repository_and_replace_only_their_own_older_export(
    boxes: Detector, instant_onnx: None, tmp_path: Path
) -> None:
    export_repository(boxes, tmp_path, "one")
    export_repository(boxes, tmp_path, "two")
    (tmp_path / "one" / "stale").touch()
    other = {name: data for name, data in snapshot(tmp_path).items() if name.startswith("two")}
    written = export_repository(boxes, tmp_path, "one")
    assert not (tmp_path / "one" / "stale").exists()
    after = snapshot(tmp_path)
    assert {name: data for name, data in after.items() if name.startswith("two")} == other
    assert {str(path.relative_to(tmp_path)) for path in written} == set(after) - set(other)
    assert {path.name for path in tmp_path.iterdir()} == {
        *FASTER_RCNN.model_names("one"),
        *FASTER_RCNN.model_names("two"),
    }


def test_another_family_under_an_old_name_leaves_nothing_of_it(
    boxes: Detector, masks: Detector, instant_onnx: None, tmp_path: Path
) -> None:
    """Detectors whose names begin the same stay as they are."""
    for name in ("x_mask", "x_other"):
        export_repository(boxes, tmp_path, name)
    others = snapshot(tmp_path)
    lines: list[str] = []
    for detector, chain in ((boxes, FASTER_RCNN), (masks, MASK_RCNN), (boxes, FASTER_RCNN)):
        export_repository(detector, tmp_path, "x_", lines.append)
        own = {name: data for name, data in snapshot(tmp_path).items() if name not in others}
        assert {name.partition("/")[0] for name in own} == set(chain.model_names("x_"))
        assert others.items() <= snapshot(tmp_path).items()
    (removed,) = [line for line in lines if line.startswith("Removing")]
    assert "x__mask_features, x__mask_header, x__masks, x__rles of the earlier export" in removed


def test_a_failed_swap_puts_the_models_of_the_other_family_back(
    boxes: Detector, masks: Detector, instant_onnx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_repository(masks, tmp_path, "one")
    before = snapshot(tmp_path)
    rename = Path.rename

    def rename_until_the_last(path: Path, target: Path) -> Path:
        if path == tmp_path / "one_masks":
            raise OSError("disk failed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_until_the_last)
    with pytest.raises(ExportError, match="disk failed"):
        export_repository(boxes, tmp_path, "one")
    assert snapshot(tmp_path) == before and not list(tmp_path.glob(".rcnn-*"))


@pytest.mark.parametrize(
    ("there", "name", "model"),
    [("x", "x_mask", "x_mask_header"), ("x", "x_masks", "x_masks"), ("x", "x_fused", "x_fused")],
)
def test_a_name_that_would_replace_a_model_of_another_detector_is_refused(
    boxes: Detector, masks: Detector, instant_onnx: None, tmp_path: Path, there: str, name: str, model: str
) -> None:
    export_repository(masks, tmp_path, there)
    before = snapshot(tmp_path)
    with pytest.raises(
        ExportError, match=f"the detector {there} in .* has a model {model}, which {name} would"
    ):
        export_repository(boxes, tmp_path, name)
    assert snapshot(tmp_path) == before
    export_repository(boxes, tmp_path / "other", name)
    with pytest.raises(ExportError, match=f"the detector {name} in .* which {there} would replace"):
        export_repository(masks, tmp_path / "other", there)


def test_what_is_no_export_is_not_removed(boxes: Detector, instant_onnx: None, tmp_path: Path) -> None:
    """A user's own model with the name of a step of Mask R-CNN is kept, because the ensemble there is no export."""
    for model, config in (
        ("one", 'ensemble_scheduling { step { model_name: "one_tokens" } }'),
        ("one_masks", ""),
    ):
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.pbtxt").write_text(config)
    export_repository(boxes, tmp_path, "one")
    assert (tmp_path / "one_masks" / "config.pbtxt").exists()


def test_templates_are_not_removed(
    boxes: Detector, masks: Detector, instant_onnx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "model_repository"
    shutil.copytree(configs.template_dir(), clone, ignore=shutil.ignore_patterns("digits*", "coco*"))
    monkeypatch.setattr(names, "template_dir", lambda: clone)
    export_repository(masks, clone, "mask_rcnn")
    with pytest.raises(ExportError, match="has the templates of mask_rcnn, which an export of faster_rcnn"):
        export_repository(boxes, clone, "mask_rcnn")
    assert (clone / "mask_rcnn_masks" / "1" / "model.py").exists()


@pytest.mark.parametrize("failing", ["export_onnx", "clean_graph"])
def test_a_failed_export_leaves_the_older_one(
    boxes: Detector, instant_onnx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    export_repository(boxes, tmp_path, "one")
    before = snapshot(tmp_path)

    def fail(*arguments: object) -> None:
        raise ExportError("this graph cannot be an engine")

    monkeypatch.setattr(repository_module, failing, fail)
    with pytest.raises(ExportError, match="cannot be an engine"):
        export_repository(boxes, tmp_path, "one")
    assert snapshot(tmp_path) == before


def test_a_failed_swap_puts_the_older_one_back(
    boxes: Detector, instant_onnx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_repository(boxes, tmp_path, "one")
    before = snapshot(tmp_path)
    rename, calls = Path.rename, []

    def rename_until_the_disk_fails(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == 6:
            raise OSError("disk failed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_until_the_disk_fails)
    with pytest.raises(ExportError, match=r"cannot write to the repository .*disk failed"):
        export_repository(boxes, tmp_path, "one")
    monkeypatch.undo()
    assert snapshot(tmp_path) == before


def test_an_older_export_that_cannot_be_put_back_outlives_the_clean_up(
    boxes: Detector, instant_onnx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_repository(boxes, tmp_path, "one")
    before = snapshot(tmp_path)
    rename, calls = Path.rename, []

    def rename_until_the_disk_fails_for_good(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) >= 6:
            raise OSError("disk failed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_until_the_disk_fails_for_good)
    with pytest.raises(ExportError, match=r"disk failed.*They are kept in .*rcnn-replaced-"):
        export_repository(boxes, tmp_path, "one")
    monkeypatch.undo()
    (kept,) = tmp_path.glob(".rcnn-replaced-*")
    for model in kept.iterdir():
        after = snapshot(model)
        assert after == {
            name.removeprefix(f"{model.name}/"): data
            for name, data in before.items()
            if name.startswith(f"{model.name}/")
        }
    assert {model.name for model in kept.iterdir()} >= set(FASTER_RCNN.model_names("one")[:3])


@pytest.mark.long
def test_the_command_says_what_it_wrote(
    instant_onnx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model", "fasterrcnn_mobilenet_v3_large_320_fpn", "--weights", "random"]
    mine = ["faster_rcnn", *model, "--name", "mine", "--repository", "repository"]
    assert main(mine) == 0
    printed = capsys.readouterr().out
    assert "mine_rpn/1/model.onnx" in printed and "This replaces" not in printed
    assert printed.endswith("Serve it:  rcnn-serve repository --models mine\n")
    assert len(printed.splitlines()) < 10 and max(map(len, printed.splitlines())) <= 80
    assert main(mine) == 0
    replaces = r"This replaces mine \(fasterrcnn_mobilenet_v3_large_320_fpn, random, fp32, exported 20\d\d-"
    assert re.search(replaces, capsys.readouterr().out)
    assert main(["faster_rcnn", *model, "--name", "a/b", "--repository", str(tmp_path)]) == 1
    assert "'a/b' is not a model name" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([*model, "--repository", str(tmp_path / "file")]) == 1
    assert "cannot write to the repository" in capsys.readouterr().err
