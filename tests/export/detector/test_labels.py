"""The labels file: its encodings, and the contents that are refused with an error."""

from pathlib import Path

import pytest
from rcnn_export.detector.labels import BACKGROUND, read_labels
from rcnn_export.errors import ExportError

NAMES = ["Käse", "猫", 'the "big" one', "$(x) & 'y'", "tench, Tinca tinca", "3: way"]
TEXT = "".join(f"{name}\n" for name in NAMES)


def read(folder: Path, content: str | bytes) -> list[str]:
    path = folder / "la bels.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_labels(path)


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace("\n", " \t\n\n").encode() + b"\xe3\x80\x80\n",  # spaces, including an ideographic one
        "".join(f"\ufeff{name}\n" for name in NAMES).encode(),  # files joined by cat
        f"\ufeff{BACKGROUND}\n{TEXT}".encode(),
    ],
)
def test_the_names_are_the_same_in_every_encoding(content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path, content) == [BACKGROUND, *NAMES]


def test_a_separator_within_a_name_ends_no_line(tmp_path: Path) -> None:
    assert read(tmp_path, "a\u2028b\nc") == [BACKGROUND, "a\u2028b", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "Katze\nKäse\n".encode("latin1"),
            r"not UTF-8: line 2 is b'K\\xe4se'.* `iconv -f latin1 -t utf-8 '.*'",
        ),
        (
            "Katze\n“Hund”\n".encode("cp1252"),
            r"`iconv -f cp1252 -t utf-8 '.*la bels.txt' > '.*la bels-utf8.txt'`",
        ),
        ("cat\ndog\n".encode("utf-16-le"), r"UTF-16 without a byte order mark.* `iconv -f utf-16le -t utf-8"),
        ("cat\ndog\n".encode("utf-16-be"), r"`iconv -f utf-16be -t utf-8"),
        ("cat\n".encode("utf-16")[:-1], r"begin as UTF-16 and cannot be read as such: truncated data"),
        (b"cat\0\ndog\n", r"hold zero bytes and are not text"),
        (
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff",
            r"are not text: write a text file with one class name per line",
        ),
        ("cat\n\x1b[31mdog\n", r"line 2 of the labels .* control character '\\x1b'"),
        ("cat\ndog\n\ncat \n", r"name 'cat' more than once \(lines 1, 4\)"),
        ("", "is empty"),
        ("\ufeff \r\n", "is empty"),
        ('["cat", "dog"]', "look like JSON"),
        ('{\n  "0": "cat"\n}\n', "look like JSON"),
        ("train: a\nval: b\nnames: [cat, dog]\n", "look like YAML"),
        ("- cat\n- dog\n", "look like YAML"),
        ("0: cat\n1: dog\n", "look like YAML"),
        ("cat: 1\ndog: 2\n", "look like YAML"),
        ("id,name\n1,cat\n2,dog\n", r"look like CSV \(first line: 'id,name'\)"),
        ("cat,dog,hen\n", "look like CSV"),
        ("1\tcat\n2\tdog\n", "look like a table with tabs"),
        ("item {\n  id: 1\n  name: 'cat'\n}\n", "look like a TensorFlow label map"),
        ("<?xml version='1.0'?>\n<a/>\n", "look like XML"),
    ],
)
def test_bad_lists_of_names_are_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        read(tmp_path, content)


def test_a_label_that_no_object_has_may_be_repeated(tmp_path: Path) -> None:
    assert read(tmp_path, "cat\nN/A\nN/A\ndog\n") == [BACKGROUND, "cat", "N/A", "N/A", "dog"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="No such file"):
        read_labels(tmp_path / "absent.txt")
    with pytest.raises(ExportError, match="Is a directory"):
        read_labels(tmp_path)
