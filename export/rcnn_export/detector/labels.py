"""Reads a labels file, which is a text file with one class name per line, and a similar file of keypoint names."""

import codecs
import re
import shlex
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rcnn_export.errors import ExportError

BACKGROUND = "__background__"
UNUSED = "N/A"  # the name of each unused label in torchvision's COCO names
# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
YAML_LINE = r"-\s+\S|\d+\s*:|.*\S:\s*\d+\Z"  # an entry of a list, "0: cat" or "cat: 0"
CSV_SEPARATOR = r"[,;](?!\s)"  # a name may contain a comma followed by a space


@dataclass(frozen=True)
class _Names:
    """How errors name a file of names, and what each of its lines names."""

    file: str
    named: str

    @property
    def advice(self) -> str:
        return f"write a text file with one {self.named} name per line"


CLASSES, KEYPOINTS = _Names("labels", "class"), _Names("keypoints", "keypoint")


def read_labels(path: Path) -> list[str]:
    """The class names, with the background put first.

    The file is UTF-8, or UTF-16 or UTF-32 with a byte order mark. Blank lines, and spaces around a name, are ignored.

    Raises:
        ExportError: the file cannot be read, has another encoding or format, has no names, or has a name twice.
    """
    names = _read_names(path, CLASSES)
    return names if names[0] == BACKGROUND else [BACKGROUND, *names]


def read_keypoint_names(path: Path) -> list[str]:
    """The names of keypoints, one per line. The rules and errors are those of ``read_labels``."""
    return _read_names(path, KEYPOINTS)


def _read_names(path: Path, of: _Names) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read the {of.file} {path}: {error.strerror}") from error
    text = _decode(path, content, of)
    lines = re.split(r"\r\n|\r|\n", text)
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    names = [name for _, name in numbered]
    if not names:
        raise ExportError(f"the {of.file} file {path} is empty: {of.advice}")
    _refuse_other_formats(path, names, of)
    for number, name in numbered:
        if control := next((each for each in name if unicodedata.category(each) == "Cc"), ""):
            raise ExportError(
                f"line {number} of the {of.file} {path} has the control character {control!r}: {name!r}. Remove it, "
                f"or {of.advice}"
            )
    repeated = [name for name, count in Counter(names).items() if count > 1 and name != UNUSED]
    if repeated:
        places = ", ".join(str(number) for number, name in numbered if name == repeated[0])
        raise ExportError(
            f"the {of.file} {path} name {repeated[0]!r} more than once (lines {places}): each {of.named} needs a name of "
            "its own"
        )
    return names


def _decode(path: Path, content: bytes, of: _Names) -> str:
    """The text without byte order marks, which concatenated files also have inside."""
    encoding = next((MARKS[mark] for mark in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding).replace("\ufeff", "")
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ExportError(
                f"the {of.file} {path} begin as {encoding.upper()} and cannot be read as such: {error.reason}. "
                "Save the file as UTF-8"
            ) from error
        if b"\0" in content:
            raise ExportError(f"the {of.file} {path} are not text: {of.advice}") from error
        number = content.count(b"\n", 0, error.start) + 1
        line = content.split(b"\n")[number - 1].strip()
        guess = "cp1252" if re.search(rb"[\x80-\x9f]", content) else "latin1"
        raise ExportError(
            f"the {of.file} {path} are not UTF-8: line {number} is {line!r}. {_convert(path, guess)}"
        ) from error
    if "\0" in text:
        halves = {"utf-16be": content[::2], "utf-16le": content[1::2]}
        guess = max(halves, key=lambda name: halves[name].count(0))
        if halves[guess].count(0) * 4 > len(content):
            raise ExportError(
                f"the {of.file} {path} seem to be UTF-16 without a byte order mark. {_convert(path, guess)}"
            )
        raise ExportError(f"the {of.file} {path} hold zero bytes and are not text: {of.advice}")
    return text


def _convert(path: Path, encoding: str) -> str:
    new = path.with_stem(f"{path.stem}-utf8")
    return (
        f"If it is {encoding}, convert it: `iconv -f {encoding} -t utf-8 {shlex.quote(str(path))} > "
        f"{shlex.quote(str(new))}`"
    )


def _refuse_other_formats(path: Path, names: list[str], of: _Names) -> None:
    text = "\n".join(names)
    separators = {len(re.findall(CSV_SEPARATOR, name)) for name in names}
    looks_like = {
        "JSON": text[0] in "[{" and text[-1] in "]}",
        "XML": re.match(r"<(\?xml|!doctype|html)\b", text, re.IGNORECASE),
        "a TensorFlow label map": re.match(r"item\s*\{", text),
        "YAML": re.search(r"^names\s*:", text, re.MULTILINE)
        or all(re.match(YAML_LINE, name) for name in names),
        "a table with tabs": "\t" in text,
        "CSV": len(separators) == 1 and separators != {0},
    }
    for found in (name for name, matches in looks_like.items() if matches):
        raise ExportError(
            f"the {of.file} {path} look like {found} (first line: {names[0][:60]!r}): {of.advice}"
        )
