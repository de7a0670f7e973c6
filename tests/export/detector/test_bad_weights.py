"""An error about a bad weights file says in one sentence what the file is, without a traceback or torch's advice."""

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rcnn_export.commands import export, train
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.errors import ExportError
from safetensors.torch import save
from torch import nn

DIGITS = "rcnn_export.digits.detector:digits_detector"


def saved(content: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)  # type: ignore[arg-type]
    return file.getvalue()


def script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def zipped(name: str, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(name, b"pt2")
    return file.getvalue()


def recompressed() -> bytes:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(WEIGHTS))) as given,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in given.namelist():
            archive.writestr(name, given.read(name))
    return file.getvalue()


def in_a_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        content = saved(WEIGHTS)
        entry = tarfile.TarInfo("model.pth")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


WEIGHTS = {"backbone.w": torch.ones(1000), "rpn.w": torch.ones(2), "roi_heads.w": torch.ones(2)}
OLD = {"_use_new_zipfile_serialization": False}

FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "it is empty"),
    "zeros": (lambda: bytes(4096), "it is all zeros"),
    "noise": (lambda: bytes(range(1, 256)) * 9, "it is in no known format of weights"),
    "text": (lambda: b"epoch 1\nepoch 2\n", "it is a text file"),
    "html": (lambda: b"\n<!DOCTYPE html><html><title>Sign in", "it is an HTML page"),
    "xml": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied', "it is an XML document"),
    "json": (lambda: b'{"message": "Not Found"}', "it is JSON text"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer.*git lfs pull"),
    "onnx": (lambda: b"\x08\x08\x12\x07pytorch:\x05\n", "it is an ONNX model"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
    "numpy": (lambda: b"\x93NUMPY\x01\x00", "it is a NumPy array"),
    "gzip": (lambda: gzip.compress(saved(WEIGHTS)), "it is a gzip archive: unpack it"),
    "tar": (in_a_tar, "it is a tar archive: unpack it"),
    "zip": (lambda: zipped("model.pth"), "it is a zip archive that holds model.pth: unpack it"),
    "zip_deflated": (lambda: zipped("model.pth", zipfile.ZIP_DEFLATED), "it is a zip archive that holds model.pth: unpack it"),
    "recompressed": (recompressed, "a torch.save file that was compressed"),
    "torchscript": (script, "it is a TorchScript archive"),
    "pt2": (lambda: zipped("program/archive_format"), "it is a program of torch.export"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "it is a plain pickle that torch.save did not write"),
    "cut_torch": (lambda: saved(WEIGHTS)[:2000], "a zip or torch.save file that is cut short"),
    "cut_old_torch": (lambda: saved(WEIGHTS, **OLD)[:600], "this file of torch.save is cut short or damaged"),
    "cut_old_data": (lambda: saved(WEIGHTS, **OLD)[:-9], "this file of torch.save is cut short or damaged"),
    "cut_safetensors": (lambda: save(WEIGHTS)[:-9], "this .safetensors file is cut short or damaged"),
    "cut_header": (lambda: save(WEIGHTS)[:40], "this .safetensors file is cut short or damaged"),
    "damaged": (
        lambda: saved(WEIGHTS).replace(b"_rebuild_tensor_v2", b"\xff" * 18),
        "this file of torch.save is (cut short or )?damaged",
    ),
    "old_whole_model": (lambda: saved(nn.Linear(2, 2), **OLD), "a whole pickled model in torch's old format"),
    "protocol_4": (lambda: saved(WEIGHTS, pickle_protocol=4), "another pickle_protocol than torch.save's default"),
    "list": (lambda: saved([1, 2]), "holds no state dict: .* an object of type list"),
    "no_tensors": (lambda: saved({"epoch": 1}), "holds no state dict: .* an object of type dict"),
    "detectron2": (lambda: saved({"model": {"proposal_generator.rpn_head.conv.weight": torch.ones(1)}}), "Detectron2's"),
    "mmdetection": (lambda: saved({"state_dict": {"roi_head.bbox_head.fc.weight": torch.ones(1)}}), "MMDetection's"),
    "ultralytics": (lambda: saved({"model": {"model.0.conv.weight": torch.ones(1)}}), "a YOLO's weights"),
    "detr": (lambda: saved({"model": {"class_embed.weight": torch.ones(1)}}), "a DETR's weights"),
    "timm": (lambda: saved({"blocks.0.attn.qkv.weight": torch.ones(1)}), "weights of a timm model"),
    "resnet": (lambda: saved({"conv1.weight": torch.ones(1)}), "weights of a backbone or a classifier alone"),
    "retinanet": (
        lambda: saved({"backbone.w": torch.ones(1), "head.classification_head.w": torch.ones(1)}),
        "torchvision's RetinaNet, FCOS or SSD",
    ),
    "other": (lambda: saved({"encoder.weight": torch.ones(1)}), r"other names than torchvision's .*encoder\.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_named_for_what_it_is(name: str, tmp_path: Path) -> None:
    make, message = FILES[name]
    path = tmp_path / f"{name}.pth"
    path.write_bytes(make())
    with pytest.raises(ExportError, match=message) as caught:
        load_detector(DIGITS, str(path))
    text = str(caught.value)
    assert str(path) in text and len(text.splitlines()) == 1
    assert "weights_only" not in text and "\x1b" not in text and "add_safe_globals" not in text


def test_folders_and_devices(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="it is a folder: give the weights file in it"):
        load_detector(DIGITS, str(tmp_path))
    (tmp_path / ".metadata").touch()
    with pytest.raises(ExportError, match="it is a distributed checkpoint"):
        load_detector(DIGITS, str(tmp_path))
    with pytest.raises(ExportError, match="it is not a regular file"):
        load_detector(DIGITS, "/dev/null")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to_sparse(), "is sparse"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "is quantised"),
        (lambda tensor: tensor.to("meta"), "is on the meta device, without values"),
        (lambda tensor: tensor.to(torch.int8), r"is of torch\.int8"),
        (lambda tensor: tensor.to(torch.complex64), r"is of torch\.complex64"),
    ],
)
def test_tensors_that_are_no_plain_numbers(
    change: Callable[[torch.Tensor], torch.Tensor], message: str, digits: Detector, tmp_path: Path
) -> None:
    name = "rpn.head.conv.0.0.weight"
    state = dict(digits.model.state_dict())
    torch.save({**state, name: change(state[name])}, tmp_path / "w.pth")
    with pytest.raises(ExportError, match=f"{name} in .*w.pth {message}.*: expected a plain tensor"):
        load_detector(DIGITS, str(tmp_path / "w.pth"))


def test_nan_is_a_warning_that_names_the_tensor(digits: Detector, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in digits.model.state_dict().items()}
    state["rpn.head.cls_logits.bias"][0] = torch.nan
    state["roi_heads.box_predictor.cls_score.bias"][1] = torch.inf
    torch.save(state, tmp_path / "w.pth")
    lines: list[str] = []
    load_detector(DIGITS, str(tmp_path / "w.pth"), report=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith(
        f"Warning: 2 of {len(state)} tensors in {tmp_path}/w.pth have NaN or infinite values"
    )
    assert "(the first: rpn.head.cls_logits.bias)" in lines[0]


def test_commands_end_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w[1].pth"
    path.write_bytes(b"<html>")
    assert (
        export.main(["faster_rcnn", "--model", DIGITS, "--weights", str(path), "--repository", str(tmp_path)])
        == 1
    )
    assert capsys.readouterr().err == (
        f"rcnn-export: cannot read the weights {path}: it is an HTML page, such as an error or a login: download "
        "the weights again, and check the downloaded file\n"
    )
    options = ["--sample", "digits", "--sample-pictures", "1", "1", "--batch-size", "1", "--device", "cpu"]
    assert train.main([*options, "--weights", str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"rcnn-train: cannot read the weights {path}") and len(error.splitlines()) == 1
