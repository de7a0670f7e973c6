"""Detects the format of a weights file by its content, and describes a file that contains no weights."""

import tarfile
import zipfile
from pathlib import Path

from rcnn_export.errors import ExportError

TORCH, SAFETENSORS = "torch.save", "safetensors"

_HEAD_BYTES = 1024
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6: a pickled magic number
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes, the format's own bound
_LFS_POINTER = b"version https://git-lfs.github.com/spec"
_DOWNLOAD_AGAIN = "download the weights again, and check the downloaded file"

# The first bytes of a file, and what such a file is.
_OTHERS = (
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes: give weights of a torchvision detector"),
    (b"\x93NUMPY", "a NumPy array: give a state dict of a torchvision detector"),
    (
        b"\x80",
        "a plain pickle that torch.save did not write: save it with torch.save(model.state_dict(), path)",
    ),
)


def find_format(path: Path) -> str:
    """``TORCH`` or ``SAFETENSORS``, by the content of the file.

    Raises:
        ExportError: the file is neither; the message says what it is and what to do.
        OSError: it cannot be read.
    """
    if path.is_dir():
        raise _no_weights(path, _describe_folder(path))
    if not path.exists():
        raise ExportError(
            f"no weights file {path}: give an existing file, a torchvision weights name such as DEFAULT, or random"
        )
    if not path.is_file():
        raise _no_weights(path, "not a regular file: give one that can be read more than once")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(_LEGACY_TORCH):
        return TORCH
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER:
        return SAFETENSORS
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        reason = _describe_zip(path)
        if not reason:
            return TORCH
        raise _no_weights(path, reason)
    raise _no_weights(path, _describe(path, head))


def _describe_folder(path: Path) -> str:
    if (path / ".metadata").exists():
        return (
            "a distributed checkpoint. Make one file of it: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    return "a folder: give the weights file in it"


def _describe_zip(path: Path) -> str:
    """Describes a zip archive that torch.save did not write; empty if torch.save wrote it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return f"a damaged zip archive: {_DOWNLOAD_AGAIN}"
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        return (
            "a TorchScript archive, which contains code and weights: save the state dict of the model that it "
            "was made from, torch.save(model.state_dict(), path)"
        )
    if "data.pkl" in inner:
        return "a torch.save file that was compressed: unpack it, or save it again" if packed else ""
    if inner & {"archive_format", "archive_version"}:
        return "a program of torch.export: save the state dict of the model, torch.save(model.state_dict(), path)"
    if any(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays: give a state dict of a torchvision detector"
    first = f" that holds {names[0]}" if names else ""
    return f"a zip archive{first}: unpack it, and give the weights file in it"


def _describe(path: Path, head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "empty: download or save the weights again"
    if head.startswith(b"PK"):
        return f"a zip or torch.save file that is cut short: {_DOWNLOAD_AGAIN}"
    if not head.strip(b"\0"):
        return "all zeros, as after an unfinished download: download the weights again"
    if text.startswith(_LFS_POINTER):
        return "a Git LFS pointer, not the weights it points to: run `git lfs pull`"
    if text.startswith((b"<!doctype html", b"<html")):
        return f"an HTML page, such as an error or a login: {_DOWNLOAD_AGAIN}"
    if text.startswith((b"<?xml", b"<error")):
        return f"an XML document, such as an error: {_DOWNLOAD_AGAIN}"
    if text.startswith((b"{", b"[")):
        return f"JSON text, such as an error or an index: {_DOWNLOAD_AGAIN}"
    for start, description in _OTHERS:
        if head.startswith(start):
            return description
    if tarfile.is_tarfile(path):
        return _describe_tar(path)
    if path.suffix == ".onnx" or (head[0] == 0x08 and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a")):
        return "an ONNX model: give the state dict of the torch model that it was exported from"
    if _is_text(head):
        return "a text file: give a state dict, saved with torch.save(model.state_dict(), path)"
    return "in no known format of weights: give a state dict, saved with torch.save(model.state_dict(), path)"


def _describe_tar(path: Path) -> str:
    with tarfile.open(path) as archive:
        names = set(archive.getnames())
    if {"pickle", "storages", "tensors"} <= names:
        return "a file of torch before 0.2: read it with an older torch, and save it with torch.save again"
    return "a tar archive: unpack it, and give the weights file in it"


def _is_text(head: bytes) -> bool:
    try:
        return head[:-4].decode().isprintable() or b"\n" in head
    except UnicodeDecodeError:
        return False


def _no_weights(path: Path, description: str) -> ExportError:
    return ExportError(f"cannot read the weights {path}: it is {description}")
