"""rcnn-detect --tiles: its outputs equal those of `detect_tiled`, in pixels of the whole picture."""

import json

import grpc
import numpy as np
import pytest
from PIL import Image
from rcnn_client import Detector
from rcnn_client.tools.detect_cli import main

TILES = ["--tiles", "60x80", "--overlap", "0.5"]


@pytest.fixture(autouse=True)
def pillows_limit(monkeypatch):
    """Set Pillow's limit of pixels, which the command raises, and restore it after each test."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)


@pytest.fixture
def photo(tmp_path):
    """A picture of two halves, which the fake server labels 3 and 4."""
    pixels = np.full((60, 160, 3), (3, 0, 0), np.uint8)
    pixels[:, 80:] = (4, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_table_drawing_json_and_coco(server, photo, tmp_path, capsys):
    server.add_masks()
    drawn, journal, coco = tmp_path / "boxed.png", tmp_path / "found.jsonl", tmp_path / "results.json"
    command = [str(photo), "--url", server.url, *TILES, "--no-whole"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{photo}: 2 detections",
        "  class    score       x1       y1       x2       y2",
        "  class 3  0.900      0.0      0.0    120.0     60.0",
        "  class 4  0.900     80.0      0.0    160.0     60.0",
    ]
    assert main([*command, "--out", str(drawn), "--json", str(journal), "--coco", str(coco)]) == 0
    with Detector(server.url) as detector:
        found = detector.detect_tiled(photo, (60, 80), 0.5, whole=False, score_thresh=0.5)
    line = json.loads(journal.read_text())
    assert line["tiles"] == {"tile_hw": [60, 80], "overlap": 0.5, "merge": None, "whole": False}
    assert [each["box"] for each in line["detections"]] == found.boxes.tolist()
    assert [each["segmentation"]["size"] for each in line["detections"]] == [[60, 160]] * 2
    assert [each["bbox"] for each in json.loads(coco.read_text())] == [[0, 0, 120, 60], [80, 0, 80, 60]]
    assert Image.open(drawn).size == (160, 60)


def test_the_whole_picture_is_sent_as_well(server, photo):
    assert main([str(photo), "--url", server.url, *TILES, "--merge", "nms", "--in-flight", "1"]) == 0
    assert server.sent_bytes()[0] == photo.read_bytes()
    assert len(server.requests) == 4
    assert server.most_in_flight == 1


def test_large_pictures_are_not_refused_as_decompression_bombs(server, photo, recwarn):
    assert main([str(photo), "--url", server.url, *TILES]) == 0
    assert not recwarn


def test_pictures_that_fail_are_named_and_the_others_answered(server, photo, tmp_path, capsys):
    server.delay_s = lambda label: 0.5 if label == 4 else 0
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    other = tmp_path / "other.png"
    Image.new("RGB", (200, 60), (7, 0, 0)).save(other)
    images = [str(tmp_path / "bad.jpg"), str(photo), str(other)]
    server_options = ["--url", server.url, "--timeout-s", "0.3"]
    assert (
        main([*images, *server_options, *TILES, "--no-whole", "--json", str(tmp_path / "found.jsonl")]) == 1
    )
    bad, slow, sum_up = capsys.readouterr().err.splitlines()
    assert bad == f"rcnn-detect: {tmp_path}/bad.jpg: cannot be read: is not an image of a known format"
    assert slow.startswith(f"rcnn-detect: {photo}: tile at x 80, y 0: no answer from ")
    assert sum_up == "rcnn-detect: 1 answered, 2 failed"
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert ["error" in line for line in lines] == [True, True, False]
    assert lines[1]["error"].startswith("tile at x 80, y 0: no answer from ")


def test_tiled_and_untiled_runs_do_not_mix(server, photo, tmp_path, capsys):
    command = [str(photo), "--url", server.url, "--json", str(tmp_path / "found.jsonl")]
    assert main([*command, *TILES]) == 0
    assert main([*command, *TILES, "--resume"]) == 0
    with pytest.raises(SystemExit):
        main([*command, "--resume"])
    assert "was written with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tiles", "800"], "'800' is not a height and width in pixels, such as 800x800"),
        (["--tiles", "0x800"], "'0x800' is not a height and width"),
        (["--tiles", "-5x800"], "expected one argument"),
        (["--tiles", "800x800x3"], "is not a height and width"),
        (
            ["--tiles", "80x80", "--overlap", "1"],
            "1 would never advance to the next tile; expected less, for example 0.2",
        ),
        (["--tiles", "80x80", "--overlap", "1.5"], "1.5 is not between 0 and 1"),
        (["--tiles", "80x80", "--merge", "wbf"], "invalid choice: 'wbf'"),
        (["--overlap", "0.3"], "--overlap, --merge and --no-whole apply only to tiles; add --tiles"),
        (["--no-whole"], "add --tiles, or leave them out"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["photo.png", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_error_that_concerns_every_picture_ends_the_run(server, photo, capsys):
    server.add_keypoints(2)
    command = [str(photo), str(photo), "--url", server.url, *TILES]
    assert main([*command, "--merge", "nmm"]) == 2
    assert capsys.readouterr().err.startswith('rcnn-detect: merge is "nmm", but the model returns keypoints')
    assert main([*command, "--classes", "dog"]) == 2
    assert main([*command, "--model", "other"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not server.requests


def test_a_failing_server_ends_the_run(server, photo, capsys):
    server.status = grpc.StatusCode.INTERNAL, "out of memory"
    assert main([str(photo)] * 12 + ["--url", server.url, *TILES]) == 1
    assert "the server failed on 10 pictures in a row" in capsys.readouterr().err
