"""rcnn-verify accepts a correct pipeline and names the first wrong stage of a wrong one."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.pipeline import Pipeline
from rcnn_export.commands import verify
from rcnn_export.detector.load import Detector
from rcnn_export.errors import ExportError
from rcnn_export.verify.pipeline_stages import PipelineStages
from rcnn_export.verify.reference import run_reference
from rcnn_export.verify.sample_pictures import sample_pictures
from rcnn_export.verify.stages import ALONE, END_TO_END, Verification

pytestmark = pytest.mark.xdist_group("export")

PICTURES = Path(__file__).resolve().parents[3] / "export" / "samples" / "pictures"


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Two pictures of digits, with different sizes."""
    paths = sorted(PICTURES.glob("*.jpg"))[:2]
    landscape, portrait = (np.asarray(Image.open(path).convert("RGB")) for path in paths)
    return [landscape, np.rot90(portrait[:, :200]).copy()]


@pytest.fixture
def editable(digits_repository: Path, tmp_path: Path) -> Path:
    """A copy of the repository whose configs and manifests a test may change."""
    repository = tmp_path / "repository"
    shutil.copytree(digits_repository, repository, copy_function=_link_engines)
    return repository


def _link_engines(source: str, target: str) -> None:
    if source.endswith(".onnx"):
        Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)


def set_parameter(repository: Path, step: str, name: str, value: object) -> None:
    path = repository / f"digits_{step}" / "config.pbtxt"
    pattern = rf'(key: "{name}"\s+value \{{\s+string_value:\s*)"[^"]*"'
    text, count = re.subn(pattern, rf'\g<1>"{json.dumps(value)}"', path.read_text())
    assert count == 1
    path.write_text(text)


def run(repository: Path, *arguments: str) -> int:
    return verify.main(["--repository", str(repository), "--name", "digits", *arguments])


def test_the_reference_has_the_eps_and_the_key_of_the_manifest(
    editable: Path, digits: Detector, tmp_path: Path
) -> None:
    path = editable / "digits_rpn" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["batch_norm_eps"] == 1e-5 and manifest["weights_key"] is None
    torch.save({"first": digits.model.state_dict(), "second": {}}, tmp_path / "w.pth")
    changed = {"batch_norm_eps": 0.25, "weights": str(tmp_path / "w.pth"), "weights_key": "first"}
    path.write_text(json.dumps(manifest | changed))
    options = ["--repository", str(editable), "--name", "digits"]
    for given, expected in (([], 0.25), (["--batch-norm-eps", "0"], 0.0)):
        reference = verify.load_reference(verify.parse([*options, *given]), print)
        assert reference.batch_norm_eps == expected and reference.weights_key == "first"


def test_reference_is_torchvision(digits: Detector, images: list[np.ndarray]) -> None:
    trace = run_reference(digits.model, images)
    tensors = [torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in images]
    with torch.no_grad():
        expected = digits.model(tensors)
    for found, image in zip(trace.detections, expected, strict=True):
        assert len(found.scores)
        np.testing.assert_array_equal(found.boxes, image["boxes"].numpy())
        np.testing.assert_array_equal(found.scores, image["scores"].numpy())
        np.testing.assert_array_equal(found.labels, image["labels"].numpy())


def test_stages_in_a_row_are_the_pipeline(digits_repository: Path, images: list[np.ndarray]) -> None:
    pipeline = Pipeline.load(digits_repository, "digits")
    expected = pipeline.detect(images)
    for index, found in enumerate(PipelineStages(pipeline).run(images).detections):
        (count,) = expected.num_detections[index]
        assert len(found.scores) == count
        np.testing.assert_array_equal(found.boxes, expected.boxes[index, :count])
        np.testing.assert_array_equal(found.scores, expected.scores[index, :count])
        np.testing.assert_array_equal(found.labels, expected.labels[index, :count])


def test_holds(digits_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(path) for path in sorted(PICTURES.glob("*.jpg"))[:3]]
    assert run(digits_repository, "--images", *paths, "--batch", "1", "2") == verify.HOLDS
    shown = capsys.readouterr().out
    assert "digits: 3 pictures in batches of 1, 2" in shown
    assert "Holds: 100.00% of the detections match" in shown
    for stage in (
        "input",
        "features",
        "rpn_boxes",
        "proposals",
        "roialigned_feature",
        "header",
        "detections",
    ):
        assert re.search(rf"^ +{stage} +alone .* yes", shown, re.MULTILINE), stage


def test_holds_on_generated_pictures(digits: Detector, digits_repository: Path) -> None:
    """The pictures go from a thumbnail to the largest size, in one batch padded to a common size."""
    pipeline = Pipeline.load(digits_repository, "digits")
    verification = Verification(digits.model, PipelineStages(pipeline))
    decoded = [decode_image(encoded, 10**7) for encoded in sample_pictures(4).values()]
    assert sorted(image.shape[:2] for image in decoded)[::3] == [(64, 48), (1333, 1000)]
    verification.add("batch", decoded)
    assert verification.holds, verification.first_divergence


def test_what_an_engine_is_given_for_the_first_picture(
    digits: Detector, digits_repository: Path, images: list[np.ndarray]
) -> None:
    verification = Verification(digits.model, PipelineStages(Pipeline.load(digits_repository, "digits")))
    verification.add("batch 0", images)
    verification.add("batch 1", images[1:])
    reference = run_reference(digits.model, images)
    (given,) = verification.first_inputs("rpn", np.dtype(np.float16)).values()
    np.testing.assert_array_equal(given, reference.input[:1].astype(np.float16))
    header = verification.first_inputs("header", np.dtype(np.float32))
    np.testing.assert_array_equal(header["proposals"][0], reference.proposals[0])
    np.testing.assert_array_equal(header["roialigned_feature"][0], reference.roialigned_feature[0])


@pytest.mark.parametrize(
    ("step", "name", "value", "stage"),
    [
        ("preprocess", "image_std", [0.229, 0.224, 0.2251], "input"),
        ("proposals", "nms_thresh", 0.69, "proposals"),
        ("proposals", "padded_counts", [100], "proposals"),
        ("proposals", "feature_strides", [32, 16, 8, 4], "roialigned_feature"),
        ("proposals", "sampling_ratio", 1, "roialigned_feature"),
        ("detections", "nms_thresh", 0.45, "detections"),
        ("detections", "score_thresh", 0.5, "detections"),
    ],
)
def test_a_wrong_parameter_is_found_in_its_stage(
    editable: Path,
    images: list[np.ndarray],
    digits: Detector,
    step: str,
    name: str,
    value: object,
    stage: str,
) -> None:
    set_parameter(editable, step, name, value)
    verification = Verification(digits.model, PipelineStages(Pipeline.load(editable, "digits")))
    verification.add("batch 0", images)
    assert not verification.holds
    assert verification.first_divergence == (stage, ALONE)


def test_exit_code_and_first_stage_of_a_wrong_pipeline(
    editable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_parameter(editable, "proposals", "nms_thresh", 0.69)
    assert run(editable, "--images", str(PICTURES), "--batch", "2") == verify.DIVERGES
    shown = capsys.readouterr().out
    assert "Does not hold. The first stage that diverges: proposals (alone)" in shown
    assert re.search(
        r"^proposals, alone: batch 0, picture \d: row \d+ only in torchvision: ", shown, re.MULTILINE
    )


def test_swapped_levels_of_the_pyramid_are_found(
    digits: Detector, digits_repository: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = PipelineStages(Pipeline.load(digits_repository, "digits"))
    rpn = stages.rpn

    def swapped(network_input: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        rpn_boxes, features = rpn(network_input)
        return rpn_boxes, [features[level] for level in (1, 0, 2, 3)]

    monkeypatch.setattr(stages, "rpn", swapped)
    verification = Verification(digits.model, stages)
    verification.add("batch 0", images)
    assert verification.first_divergence == ("features", ALONE)
    assert verification.comparisons["rpn_boxes", ALONE].holds
    assert not verification.comparisons["roialigned_feature", END_TO_END].holds
    assert verification.comparisons["roialigned_feature", ALONE].holds


def test_too_few_matches_do_not_hold(digits: Detector, digits_repository: Path) -> None:
    """Each mismatch may have an explanation, but there must not be many."""
    verification = Verification(digits.model, PipelineStages(Pipeline.load(digits_repository, "digits")))
    comparison = verification.comparisons["detections", END_TO_END]
    comparison.matched, comparison.rows = 99, 100
    assert verification.holds
    comparison.matched = 98
    assert verification.first_divergence is None and not verification.holds


@pytest.mark.parametrize(
    ("count", "sizes", "dealt"),
    [
        (12, [1, 3, 8], [[0], [1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11]]),
        (5, [1, 3], [[0], [1, 2, 3], [4]]),
        (2, [1, 3], [[0], [1, 0, 1]]),
        (4, [3], [[0, 1, 2], [3, 0, 1]]),
    ],
)
def test_every_picture_and_every_size_is_dealt(count: int, sizes: list[int], dealt: list[list[int]]) -> None:
    pictures = [(str(index), b"") for index in range(count)]
    assert [[int(name) for name, _ in batch] for batch in verify.deal(pictures, sizes)] == dealt


def test_a_picture_is_decoded_as_served_or_named() -> None:
    encoded = next(iter(sample_pictures(1).values()))
    np.testing.assert_array_equal(verify.decode(("a.png", encoded), 10**7), decode_image(encoded, 10**7))
    with pytest.raises(
        ExportError, match=r"cannot read the picture a\.png: the image is damaged or cut short"
    ):
        verify.decode(("a.png", encoded[:-100]), 10**7)


def test_the_pictures_of_a_folder_are_of_the_servers_formats(tmp_path: Path) -> None:
    for name in ("a.mpo", "b.JFIF", "c.ppm", "d.pdf", "e.webp"):
        (tmp_path / name).touch()
    assert [name for name, _ in verify.read_pictures([tmp_path])] == ["a.mpo", "b.JFIF", "e.webp"]


def test_generated_pictures_are_the_same_every_time() -> None:
    assert sample_pictures(2) == sample_pictures(2)


def test_other_weights_are_refused(editable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(editable, "--weights", "random") == verify.UNUSABLE
    assert "is not what" in capsys.readouterr().err


def test_weights_are_found_from_any_folder_and_asked_for_if_they_are_gone(
    editable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = editable / "digits_rpn" / "1" / "manifest.json"
    weights = json.loads(manifest.read_text())["weights"]
    assert Path(weights).is_absolute() and Path(weights).is_file()
    manifest.write_text(manifest.read_text().replace(weights, str(tmp_path / "gone.pth")))
    assert run(editable) == verify.UNUSABLE
    assert f"the weights {tmp_path}/gone.pth that digits was exported from" in (
        said := capsys.readouterr().err
    )
    assert said.endswith("give them as --weights FILE\n")


def test_a_precision_of_another_version_is_refused(
    editable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = editable / "digits_rpn" / "1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"fp32"', '"fp4"'))
    assert run(editable) == verify.UNUSABLE
    assert "was exported in fp4, and this rcnn-verify knows fp32, fp16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--name", "absent"],
            r"rcnn-verify: cannot read .*absent_rpn/1/manifest\.json.*Export the detector",
        ),
        (["--images", "no_such.jpg"], r"rcnn-verify: .*no_such\.jpg"),
        (["--images", __file__], r"rcnn-verify: .* are not an image of a known format"),
        (["--server", "localhost:1"], r"rcnn-verify: the server localhost:1: .*UNAVAILABLE"),
    ],
)
def test_unusable_arguments(
    digits_repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(digits_repository, *arguments) == verify.UNUSABLE
    assert re.match(message, capsys.readouterr().err)


@pytest.mark.parametrize("size", ["0", "129", "two"])
def test_no_batch_size(capsys: pytest.CaptureFixture[str], size: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        verify.main(["--batch", size])
    assert exit_.value.code == verify.UNUSABLE
    assert "expected 1 to 128" in capsys.readouterr().err
