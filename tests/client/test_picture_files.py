"""Which files of a folder are sent, file names that are not UTF-8, and pictures that Pillow refuses by default."""

import json
import os
import struct
import subprocess
import sys
import zlib

import pytest
from PIL import ExifTags, Image
from rcnn_backend.operators.picture_files import FORMATS as SERVED_FORMATS
from rcnn_client._picture_files import FORMATS, open_picture
from rcnn_client.tools.detect_cli import main
from rcnn_client.tools.evaluation import Picture, check_picture
from rcnn_client.tools.picture_files import OTHER_SUFFIXES, picture_suffixes


def chunk(kind, content, checksum=None):
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def test_the_formats_are_the_servers():
    assert FORMATS == SERVED_FORMATS
    expected = ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .tif .tiff .gif .bmp"
    assert picture_suffixes() == set(expected.split())
    assert not picture_suffixes() & OTHER_SUFFIXES


def test_a_folder_of_every_suffix(server, tmp_path, capsys):
    photos = tmp_path / "photos"
    (photos / "folder.jpg").mkdir(parents=True)
    suffixes = sorted(picture_suffixes())
    for label, suffix in enumerate(suffixes, start=1):
        kind = "JPEG" if suffix == ".mpo" else Image.registered_extensions()[suffix]
        Image.new("RGB", (40, 30), (label, 0, 0)).save(photos / f"{label:02d}{suffix.upper()}", kind)
    for name in ("a.ppm", "b.PPM", "c.heic", "notes.txt", "film.mp4", ".d.heic"):
        (photos / name).touch()
    os.mkfifo(photos / "pipe.png")
    (photos / "loop.png").symlink_to(photos / "loop.png")
    assert (
        main(
            [
                str(photos),
                "--url",
                server.url,
                "--json",
                str(tmp_path / "found.jsonl"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [
        f"{photos}/{label:02d}{suffix.upper()}" for label, suffix in enumerate(suffixes, start=1)
    ]
    assert capsys.readouterr().err == (
        "rcnn-detect: skipped 1 .heic and 2 .ppm: the server decodes JPEG, PNG, WEBP, TIFF, GIF and BMP\n"
    )
    for drawing in (tmp_path / "out").iterdir():
        with Image.open(drawing) as drawn:
            assert drawn.format == (
                "JPEG" if drawing.suffix in (".JPG", ".JPEG", ".JPE", ".JFIF", ".MPO") else "PNG"
            )


def test_a_folder_of_other_pictures(server, tmp_path, capsys):
    (tmp_path / "a.heic").touch()
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--url", server.url])
    assert (
        "holds no picture: expected files such as .jpg or .png; found 1 .heic, which the server cannot decode"
        in (capsys.readouterr().err)
    )


@pytest.fixture
def oddly_named(tmp_path, png):
    """Two pictures; the name of the first is in Latin-1."""
    names = [os.fsdecode(b"caf\xe9.png"), "plain.png"]
    (tmp_path / "photos").mkdir()
    for label, name in enumerate(names, start=1):
        (tmp_path / "photos" / name).write_bytes(png(label))
    return tmp_path / "photos"


def test_a_name_that_is_not_utf_8_as_json(server, oddly_named, tmp_path):
    journal, results = tmp_path / "found.jsonl", tmp_path / "results.json"
    command = [str(oddly_named), "--url", server.url, "--json", str(journal), "--coco", str(results)]
    command += ["--out", str(tmp_path / "drawn")]
    assert main(command) == 0
    raw = journal.read_bytes()
    assert b"caf\\udce9.png" in raw
    lines = [json.loads(line) for line in raw.decode().splitlines()]
    assert [line["detections"][0]["label"] for line in lines] == [1, 2]
    assert os.fsencode(lines[0]["file"]) == os.fsencode(oddly_named) + b"/caf\xe9.png"
    assert json.loads(results.read_text())[0]["file_name"] == lines[0]["file"]
    assert (tmp_path / "drawn" / os.fsdecode(b"caf\xe9.png")).exists()
    assert main([*command, "--resume"]) == 0
    assert len(server.requests) == 2 and journal.read_bytes() == raw


@pytest.mark.parametrize(("arguments", "encoding"), [([], "ascii"), (["--json", "-"], "utf-8")])
def test_a_name_that_is_not_utf_8_is_printed(server, oddly_named, arguments, encoding):
    (oddly_named / os.fsdecode(b"\xff.png")).write_bytes(b"no picture")
    command = [
        sys.executable,
        "-m",
        "rcnn_client.tools.detect_cli",
        str(oddly_named),
        "--url",
        server.url,
        *arguments,
    ]
    run = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert run.returncode == 1
    assert rb"caf\udce9.png" in run.stdout and b"plain.png" in run.stdout
    assert rb"\udcff.png: in ensemble" in run.stderr and b"Traceback" not in run.stderr


@pytest.fixture
def turned_png(tmp_path):
    """A PNG of 30x20 px when upright, which Pillow refuses: 2 MB of text, a broken profile, and EXIF at the end."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "turned.png"
    Image.new("RGB", (20, 30), (3, 0, 0)).save(path)
    data = path.read_bytes()
    texts = chunk(b"tEXt", b"Comment\0" + b"t" * 2_000_000) + chunk(b"iCCP", b"profile\0\0broken")
    texts += chunk(b"eXIf", b"broken", checksum=0)
    path.write_bytes(data[:33] + texts + data[33:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:])
    with pytest.raises((OSError, ValueError)):
        Image.open(path)
    return path


def test_a_picture_is_measured_as_the_server_sees_it(turned_png, png):
    check_picture(Picture(1, turned_png, (30, 20)))
    with pytest.raises(ValueError, match="is 30x20 px upright, but its annotation says 20x30"):
        check_picture(Picture(1, turned_png, (20, 30)))
    turned_png.write_bytes(b"")
    with pytest.raises(ValueError, match="is not an image of a known format"):
        check_picture(Picture(1, turned_png, (20, 30)))


def test_a_picture_is_drawn_as_the_server_sees_it(turned_png):
    with open_picture(turned_png) as picture:
        assert picture.getpixel((0, 0)) == (3, 0, 0)
        assert picture.getexif()[ExifTags.Base.Orientation] == 6
