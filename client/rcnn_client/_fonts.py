"""Fonts in which the names of classes can be drawn, whatever their script.

Pillow includes a font with plain Latin letters. For other letters, a font of the system is used, or else one that
matplotlib includes. Arabic, Hebrew and Indic letters are joined and ordered correctly if Pillow has libraqm
(`PIL.features.check("raqm")`), as its wheels for Linux and macOS do.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from PIL import ImageFont

Font: TypeAlias = ImageFont.ImageFont | ImageFont.FreeTypeFont

NO_CHARACTER = "\U0010ffff"  # no font has it, so it is drawn as a missing character
CHECK_SIZE = 20
MAX_FONTS = 1000  # how many are opened at most to find one
INVISIBLE = ("Zs", "Cf")  # blanks and joiners, which are not visible
FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    r"%WINDIR%\Fonts",
    r"%LOCALAPPDATA%\Microsoft\Windows\Fonts",
)
STYLES = "bold|black|heavy|medium|light|thin|italic|oblique|condensed|mono"
REGULAR = 80  # fontconfig's weight


@functools.lru_cache(maxsize=4096)
def readable(name: str, label: int, size: int) -> tuple[str, Font]:
    """The name of a class and a font that has its letters; `class <label>` if no font has them all."""
    default = ImageFont.load_default(size)
    if not name.strip():
        return f"class {label}", default
    if has_letters(default, name):
        return name, default
    found = _find_file("".join(sorted(set(name))))
    font = _open(*found, size) if found else None
    return (name, font) if font else (f"class {label}", default)


def has_letters(font: Font, text: str) -> bool:
    """Whether the font draws each visible character of the text, and none of them as a box."""
    try:
        missing = bytes(font.getmask(NO_CHARACTER))
        visible = (each for each in text if unicodedata.category(each) not in INVISIBLE)
        return all(each.isprintable() and bytes(font.getmask(each)) != missing for each in visible)
    except (OSError, ValueError):  # half a surrogate pair, or a font of fixed size
        return False


@functools.lru_cache(maxsize=1024)
def _find_file(letters: str) -> tuple[str, int] | None:
    """The first file that has the letters, and the font's index in it."""
    for count, (file, index) in enumerate(_candidates(letters)):
        font = _open(file, index, CHECK_SIZE)
        if font and has_letters(font, letters):
            return file, index
        if count == MAX_FONTS:
            break
    return None


def _open(file: str, index: int, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(file, size, index)
    except (OSError, ValueError):
        return None


def _candidates(letters: str) -> Iterator[tuple[str, int]]:
    listed = _ask_fontconfig(letters)
    yield from listed or ()
    folders = [Path(os.path.expandvars(folder)).expanduser() for folder in FOLDERS] if listed is None else []
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib and matplotlib.origin:
        folders.append(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf")
    for folder in folders:
        files = (path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc"))
        for path in sorted(
            files, key=lambda path: _rank(path.name, not re.search(STYLES, path.name.lower()))
        ):
            if not path.stem.startswith("LastResort"):  # draws the name of the script in place of each letter
                yield str(path), 0


def _ask_fontconfig(letters: str) -> list[tuple[str, int]] | None:
    """Fonts that have all letters (file and index in it), upright ones of regular weight first; None without fontconfig."""
    codes = " ".join(f"{ord(letter):x}" for letter in letters)
    form = "%{file}\n%{index}\n%{slant}\n%{weight}\n"
    try:
        done = subprocess.run(
            ["fc-list", "-f", form, f":charset={codes}"], capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = os.fsdecode(done.stdout).splitlines()
    fonts = list(zip(*(lines[field::4] for field in range(4)), strict=False))
    fonts.sort(
        key=lambda font: (*_rank(Path(font[0]).name, font[2] == "0" and font[3] == str(REGULAR)), font)
    )
    return [(file, int(index) & 0xFFFF) for file, index, _, _ in fonts if index.isdecimal()]


def _rank(name: str, is_regular: bool) -> tuple[bool, bool, str]:
    """The order in which fonts are tried."""
    return not is_regular, "sans" not in name.lower(), name
