"""The command rcnn-detect: its table, its pictures, its exit codes."""

import grpc
import numpy as np
import pytest
from PIL import ExifTags, Image
from rcnn_client import Detections
from rcnn_client.tools.detect_cli import main
from rcnn_client.tools.detect_outputs import table
from rich.cells import cell_len

RED = 3  # the fake server labels this red "class 3"


@pytest.fixture
def photo(tmp_path, png):
    path = tmp_path / "photo.png"
    path.write_bytes(png(RED, size=(320, 240)))
    return path


def test_table(server, photo, capsys):
    assert main([str(photo), "--url", server.url]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{photo}: 2 detections",
        "  class    score       x1       y1       x2       y2",
        "  class 3  0.900      0.0      0.0    320.0    240.0",
        "  class 3  0.600      0.0      0.0    320.0    240.0",
    ]
    assert err == ""


def test_threshold_and_no_detections(server, photo, capsys):
    assert main([str(photo), "--url", server.url, "--score-thresh", "0.95"]) == 0
    assert capsys.readouterr().out == f"{photo}: no detections\n"
    assert server.requests[0].parameters["score_thresh"].double_param == 0.95


def test_drawing(server, photo, tmp_path):
    out = tmp_path / "new" / "boxed.png"
    assert main([str(photo), "--url", server.url, "--out", str(out)]) == 0
    drawn = np.asarray(Image.open(out))
    assert drawn.shape == (240, 320, 3)
    assert (drawn[239] != (RED, 0, 0)).any(axis=-1).all()  # the box's bottom edge
    assert (drawn[100, 50:250] == (RED, 0, 0)).all()


def test_the_drawing_of_a_rotated_photo_is_upright(server, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    Image.new("RGB", (320, 240), (RED, 0, 0)).save(tmp_path / "phone.jpg", exif=exif)
    assert main([str(tmp_path / "phone.jpg"), "--url", server.url, "--out", str(tmp_path / "out.jpg")]) == 0
    with Image.open(tmp_path / "out.jpg") as drawn:
        assert drawn.size == (240, 320) and not drawn.getexif().get(ExifTags.Base.Orientation)


def test_several_pictures_are_drawn_into_a_folder(server, photo, tmp_path, png, capsys):
    other = tmp_path / "other.png"
    other.write_bytes(png(7))
    assert main([str(photo), str(other), "--url", server.url, "--out", str(tmp_path / "drawn")]) == 0
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["other.png", "photo.png"]
    out = capsys.readouterr().out
    assert out.index(str(photo)) < out.index("class 3") < out.index(str(other)) < out.index("class 7")


def test_one_picture_into_a_folder_that_exists(server, photo, tmp_path):
    (tmp_path / "drawn").mkdir()
    assert main([str(photo), "--url", server.url, "--out", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "photo.png").exists()


def test_a_bad_picture_fails_alone(server, photo, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"not a jpeg")
    images = [str(tmp_path / "bad.jpg"), str(tmp_path / "missing.jpg"), str(photo)]
    assert main([*images, "--url", server.url, "--out", str(tmp_path / "drawn")]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{photo}: 2 detections")
    bad, missing, sum_up = err.splitlines()
    assert bad == f"rcnn-detect: {tmp_path}/bad.jpg: in ensemble 'faster_rcnn', not an image"
    assert missing == f"rcnn-detect: {tmp_path}/missing.jpg: cannot be read: No such file or directory"
    assert sum_up == "rcnn-detect: 1 answered, 2 failed"
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["photo.png"]


def test_a_drawing_that_cannot_be_written(server, photo, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(photo), "--url", server.url, "--out", str(tmp_path / "file" / "boxed.png")]) == 1
    out, err = capsys.readouterr()
    assert "2 detections" in out and f"{photo}: not drawn to {tmp_path}/file/boxed.png: " in err


def test_no_server(photo, capsys):
    assert main([str(photo), "--url", "127.0.0.1:1"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "127.0.0.1:1" in err and "Traceback" not in err


def test_a_server_that_fails(server, photo, capsys):
    server.status = (grpc.StatusCode.INTERNAL, "out of memory")
    assert main([str(photo), "--url", server.url]) == 1
    assert f"rcnn-detect: {photo}: " in (err := capsys.readouterr().err) and "out of memory" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "PICTURE"),
        (["{photo}", "--score-thresh", "1.5"], "1.5 is not between 0 and 1"),
        (["{photo}", "--score-thresh", "high"], "invalid probability"),
        (["{photo}", "--out", "boxed.xyz"], "expected a folder, or a file such as .png"),
        (["{photo}", "--out", "{photo}"], "would overwrite a picture"),
        (["{photo}", "other.jpg", "--out", "boxed.png"], "several pictures need a folder"),
        (["{photo}", "elsewhere/photo.bmp", "--out", "drawn"], "would overwrite"),
        (["{photo}", "--unknown"], "--unknown"),
        (["{photo}", "--out", "-", "--json", "-"], "only one of"),
        (["{photo}", "--resume"], "--resume needs --json FILE"),
        (["{photo}", "--annotations", "a.json"], "--annotations only gives --coco its ids"),
        (["{photo}", "--header", "token"], "'token' is not 'NAME: VALUE'"),
        (["nowhere/*.jpg"], "nowhere/*.jpg: no file matches this pattern"),
        (["-", "-"], "stdin holds one picture"),
        (["{photo}", "other.jpg", "--out", "-"], "need a folder, not stdout"),
    ],
)
def test_wrong_usage(server, photo, capsys, arguments, reason):
    arguments = [argument.format(photo=photo) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--url", server.url])
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err
    assert server.requests == []


def test_a_long_class_name_leaves_the_table_80_columns():
    names = ["a name of a class that is longer than the table has room for", "犬" * 20, "cat"]
    boxes = np.array([[0, 0, 4000, 3000]] * 3, np.float32)
    found = Detections(boxes, np.ones(3, np.float32), np.array([1, 2, 3]), names)
    _, *lines = table("photo.jpg", found).splitlines()
    assert {cell_len(line) for line in lines} == {80}
    assert lines[1].startswith("  a name of a class that is longer t…  1.000 ")
    assert lines[2].startswith(f"  {'犬' * 17}…  1.000 ")
