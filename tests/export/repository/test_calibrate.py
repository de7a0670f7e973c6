"""Which pictures an INT8 export is calibrated on, and which folders are refused before anything is exported."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rcnn_export.engines.options import Calibration
from rcnn_export.errors import ExportError
from rcnn_export.repository.calibrate import find_pictures

MAX_PIXELS = 10_000


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (20, 10)) -> None:
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def find(folder: Path, num_pictures: int = 300, lines: list[str] | None = None) -> list[str]:
    found = find_pictures(Calibration(folder, num_pictures), MAX_PIXELS, (lines or []).append)
    return [path.name for path in found.paths]


def test_pictures_are_taken_evenly_over_the_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path, 7)
    (tmp_path / "notes.txt").write_text("no picture")
    assert find(tmp_path, 3) == ["000.png", "002.png", "004.png"]
    assert len(find(tmp_path)) == 7


def test_the_hash_is_that_of_the_contents(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    before = find_pictures(Calibration(tmp_path), MAX_PIXELS, print).sha256
    (tmp_path / "000.png").rename(tmp_path / "0.png")
    assert find_pictures(Calibration(tmp_path), MAX_PIXELS, print).sha256 == before
    write_pictures(tmp_path, 1, (21, 10))
    assert find_pictures(Calibration(tmp_path), MAX_PIXELS, print).sha256 != before


def test_pictures_of_one_colour_are_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    Image.new("RGB", (20, 10), "red").save(tmp_path / "001.png")
    lines: list[str] = ["so far"]
    assert find(tmp_path, lines=lines) == ["000.png", "002.png"]
    assert lines[1:] == ["1 of the 3 calibration pictures has one colour and is left out"]


def fill_with_nothing(folder: Path) -> None:
    (folder / "notes.txt").write_text("no picture")


def fill_with_one(folder: Path) -> None:
    write_pictures(folder, 1)


def fill_with_blank_ones(folder: Path) -> None:
    for number in range(3):
        Image.new("L", (20, 10), 255).save(folder / f"{number}.png")


def fill_with_another_file(folder: Path) -> None:
    write_pictures(folder, 2)
    (folder / "b.jpg").write_text("<html>not found</html>")


def fill_with_a_large_one(folder: Path) -> None:
    write_pictures(folder, 2, (200, 100))


def remove(folder: Path) -> None:
    folder.rmdir()


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (remove, "there is no folder .*pictures: give --calibrate a folder with pictures"),
        (
            fill_with_nothing,
            r"cannot calibrate on .*pictures: it has 0 pictures\. Give --calibrate at least 2",
        ),
        (fill_with_one, r"it has 1 picture\. Give --calibrate at least 2"),
        (fill_with_blank_ones, r"it has 3 pictures, 3 of one colour\. Give"),
        (fill_with_another_file, r"cannot calibrate on .*b\.jpg: .* Take the file out of the folder"),
        (fill_with_a_large_one, r"cannot calibrate on .*000\.png: the image .*200x100 pixels"),
    ],
)
def test_an_unusable_folder_is_refused(tmp_path: Path, fill, message: str) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "pictures"
    folder.mkdir()
    fill(folder)
    with pytest.raises(ExportError) as raised:
        find(folder)
    assert re.search(message, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)
