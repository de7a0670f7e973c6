"""The command rcnn-detect with --track, --live and a video as --out."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from rcnn_client.tools.detect_cli import main

cv2 = pytest.importorskip("cv2")

COMMAND = [sys.executable, "-m", "rcnn_client.tools.detect_cli"]


@pytest.fixture
def clip(tmp_path):
    """30 frames of 0.1 s each; the fake server finds three objects in each frame."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(30):
        writer.write(np.full((48, 64, 3), 40, np.uint8))
    writer.release()
    return path


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def frames_of(path):
    video = cv2.VideoCapture(str(path))
    frames = []
    while (frame := video.read()[1]) is not None:
        frames.append(frame)
    return frames


@pytest.mark.parametrize("shapes", ["boxes", "masks", "keypoints"])
def test_tracked_and_drawn(server, clip, tmp_path, shapes):
    if shapes == "masks":
        server.add_masks()
    if shapes == "keypoints":
        server.add_keypoints(17)
    journal, drawn = tmp_path / "found.jsonl", tmp_path / "new" / "drawn.mp4"
    assert main([str(clip), "--url", server.url, "--track", "--json", str(journal), "--out", str(drawn)]) == 0
    lines = lines_of(journal)
    assert [line["frame"] for line in lines] == list(range(30))
    for line in lines:  # the objects of the fake server are all at the same place, so they count as one
        (found,) = line["detections"]
        assert found["track_id"] == 1 and found["score"] == 0.9
        assert ("segmentation" in found) == (shapes == "masks")
        assert ("keypoints" in found) == (shapes == "keypoints")
    assert {request.parameters["score_thresh"].double_param for request in server.requests} == {0.1}
    frames = frames_of(drawn)
    assert len(frames) == 30 and frames[0].shape == (48, 64, 3)
    assert frames[0].std() > 20  # before drawing, the frame was a single grey


def test_without_track_a_video_is_drawn_too(server, clip, tmp_path, capsys):
    assert main([str(clip), "--url", server.url, "--out", str(tmp_path / "drawn.avi")]) == 0
    assert len(frames_of(tmp_path / "drawn.avi")) == 30
    assert "#1" not in capsys.readouterr().out.partition("clip.avi#0")[2].partition("clip.avi#1:")[0]


def test_each_video_has_ids_of_its_own(server, clip, tmp_path, capsys):
    other = tmp_path / "other.avi"
    other.write_bytes(clip.read_bytes())
    assert main([str(clip), str(other), "--url", server.url, "--track", "--json", "-"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 60
    assert {each["track_id"] for line in lines for each in line["detections"]} == {1}


def test_live_drops_frames_that_come_too_fast_and_says_so(server, clip, tmp_path, capsys):
    server.delay_s = lambda label: 0.3
    journal, drawn = tmp_path / "found.jsonl", tmp_path / "drawn.mp4"
    options = ["--live", "--track", "--json", str(journal), "--out", str(drawn)]
    started = time.monotonic()
    assert main([str(clip), "--url", server.url, *options]) == 0
    took_s = time.monotonic() - started
    frames = [line["frame"] for line in lines_of(journal)]
    assert frames == sorted(frames) and frames[-1] == 29 and 3 <= len(frames) <= 15
    assert capsys.readouterr().err == (
        f"rcnn-detect: {clip}: {30 - len(frames)} of 30 frames were dropped, to keep up with the video\n"
    )
    assert 2.9 <= took_s < 8  # 30 answers would take nine seconds
    assert len(frames_of(drawn)) == 30 - frames[0]  # the drawn video lasts as long as the original
    assert server.most_in_flight == 1


def test_ctrl_c_closes_the_video(server, clip, tmp_path):
    server.delay_s = lambda label: 0.2
    journal, drawn = tmp_path / "found.jsonl", tmp_path / "drawn.mp4"
    command = [*COMMAND, str(clip), "--url", server.url, "--live", "--track"]
    run = subprocess.Popen(
        [*command, "--json", str(journal), "--out", str(drawn)], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 30
    while not (journal.exists() and len(lines_of(journal)) >= 3) and time.monotonic() < until:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=10) == 130
    dropped, interrupted = run.stderr.read().splitlines()
    assert "frames were dropped" in dropped and interrupted == "rcnn-detect: interrupted"
    assert len(lines_of(journal)) <= len(frames_of(drawn)) < 30


def test_bad_videos_are_a_line_each(server, clip, tmp_path):
    """The messages that OpenCV and FFmpeg print about them are hidden."""
    content = clip.read_bytes()
    contents = {
        "empty": b"",
        "text": b"no video" * 99,
        "header": content[:300],
        "cut": content[: len(content) // 2],
    }
    files = []
    for name, part in contents.items():
        files.append(tmp_path / f"{name}.avi")
        files[-1].write_bytes(part)
    run = subprocess.run(
        [*COMMAND, *map(str, files), "--url", server.url, "--json", str(tmp_path / "found.jsonl")],
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (1, "")
    empty, text, header, cut, _ = run.stderr.splitlines()
    for line in (empty, text, header):
        assert ": OpenCV " in line and "Error" not in line
    assert cut.startswith(f"rcnn-detect: {tmp_path}/cut.avi: it ends after ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.png", "--track"], "--track follows objects through a video, but photo.png is a picture"),
        (["photo.png", "--live"], "--live drops frames of a video, but photo.png is a picture"),
        (
            ["photo.png", "--out", "a.mp4"],
            "--out a.mp4: a video file takes the frames of one video; use a folder",
        ),
        (["clip.avi", "b.avi", "--out", "a.mp4"], "--out a.mp4: a video file takes the frames of one video"),
        (["clip.avi", "--out", "clip.avi"], "--out clip.avi: clip.avi would overwrite a picture or video"),
        (["clip.avi", "--track", "--json", "a", "--resume"], "--resume cannot continue with --track"),
        (["camera:0", "--live", "--json", "a", "--resume"], "--resume cannot continue with --live"),
        (
            ["clip.avi", "--out", "a.mp4", "--json", "a", "--resume"],
            "--resume cannot continue the video a.mp4",
        ),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, capsys, clip, arguments, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert f"rcnn-detect: error: {message}" in capsys.readouterr().err
    assert clip.stat().st_size > 1000


def test_a_number_is_a_camera_unless_it_is_a_file(server, tmp_path, monkeypatch, capsys, png):
    monkeypatch.chdir(tmp_path)
    assert main(["99", "--url", server.url]) == 1
    assert capsys.readouterr().err == (
        "rcnn-detect: camera:99: OpenCV cannot open it: is it a video, or a camera?\n"
    )
    (tmp_path / "99").write_bytes(png(3))
    assert main(["99", "--url", server.url]) == 0


def test_a_video_that_cannot_be_written_ends_the_run_with_a_line(server, clip, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(clip), "--url", server.url, "--out", str(tmp_path / "file" / "drawn.mp4")]) == 1
    assert capsys.readouterr().err.startswith("rcnn-detect: ")


def test_without_the_tracker_it_is_one_line(clip, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trackforge", None)
    assert main([str(clip), "--track"]) == 1
    assert capsys.readouterr().err == (
        "rcnn-detect: objects are tracked by trackforge, which is not installed: pip install 'rcnn-client[video]'\n"
    )
