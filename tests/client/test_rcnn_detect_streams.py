"""The command rcnn-detect with other programs and on videos: pipes, a terminal, Ctrl-C, OpenCV."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
from PIL import Image
from rcnn_client.tools.detect_cli import main

COMMAND = [sys.executable, "-m", "rcnn_client.tools.detect_cli"]


@pytest.fixture
def folder(tmp_path, png):
    """Pictures 1.png to 6.png, which the fake server labels 1 to 6."""
    (tmp_path / "photos").mkdir()
    for label in range(1, 7):
        (tmp_path / "photos" / f"{label}.png").write_bytes(png(label))
    return tmp_path / "photos"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def labels(lines):
    return [line["detections"][0]["label"] for line in lines]


def test_stdin_to_stdout(server, png):
    command = [*COMMAND, "-", "--url", server.url]
    drawn = subprocess.run([*command, "--out", "-"], input=png(3, size=(320, 240)), capture_output=True)
    assert (drawn.returncode, drawn.stderr) == (0, b"")
    assert Image.open(io.BytesIO(drawn.stdout)).size == (320, 240)
    line = subprocess.run([*command, "--json", "-"], input=png(3), capture_output=True)
    assert json.loads(line.stdout)["file"] == "-" and labels([json.loads(line.stdout)]) == [3]
    bad = subprocess.run(command, input=b"no picture", capture_output=True, text=False)
    assert bad.returncode == 1
    assert bad.stderr == b"rcnn-detect: -: in ensemble 'faster_rcnn', not an image\n"


def test_a_server_that_goes_away_ends_the_run(server, tmp_path, png, capsys):
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(png(1))
    server.status = (grpc.StatusCode.INTERNAL, "out of memory")
    assert main([str(tmp_path), "--url", server.url, "--in-flight", "4"]) == 1
    err = capsys.readouterr().err
    assert "failed on 10 pictures in a row; the remaining pictures are not sent" in err
    assert len(server.requests) < 40


def test_the_reader_of_a_pipe_may_stop_early(server, folder):
    run = subprocess.run(
        f"{' '.join(COMMAND)} {folder} --url {server.url} | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout == f"{folder}/1.png: 2 detections\n" and run.stderr == ""


def test_ctrl_c_and_resume(server, folder, tmp_path):
    server.delay_s = lambda label: 0.0 if label < 4 else 30.0
    journal = tmp_path / "found.jsonl"
    command = [str(folder), "--url", server.url, "--json", str(journal)]
    run = subprocess.Popen([*COMMAND, *command, "--in-flight", "2"], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not (journal.exists() and len(lines_of(journal)) == 3) and time.monotonic() < until:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=10) == 130
    assert run.stderr.read() == "rcnn-detect: interrupted; to continue, run the same command with --resume\n"
    assert labels(lines_of(journal)) == [1, 2, 3]
    server.delay_s = lambda label: 0.0
    assert main([*command, "--resume"]) == 0
    assert labels(lines_of(journal)) == [1, 2, 3, 4, 5, 6]


def test_progress_at_a_terminal_does_not_take_stdout(server, folder):
    """With stderr at a terminal and stdout in a pipe, the progress bar is on stderr and the table on stdout."""
    leader, terminal = pty.openpty()
    run = subprocess.run(
        [*COMMAND, str(folder), "--url", server.url], stdout=subprocess.PIPE, stderr=terminal, text=True
    )
    os.close(terminal)
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert run.stdout.count("2 detections") == 6 and "detections" not in shown
    assert "6/6" in shown and "images/s" in shown


@pytest.fixture
def clip(tmp_path):
    """Five frames that the fake server labels 40, 80, ... 200, except for the loss of MJPG."""
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for red in (40, 80, 120, 160, 200):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:, :, 2] = red  # OpenCV's order is BGR
        writer.write(frame)
    writer.release()
    return path


def test_a_video(server, clip, tmp_path):
    journal, out = tmp_path / "found.jsonl", tmp_path / "frames"
    command = [str(clip), "--url", server.url, "--json", str(journal)]
    assert main([*command, "--out", str(out)]) == 0
    lines = lines_of(journal)
    assert [(line["file"], line["frame"]) for line in lines] == [(str(clip), frame) for frame in range(5)]
    assert np.abs(np.subtract(labels(lines), [40, 80, 120, 160, 200])).max() <= 5
    assert sorted(path.name for path in out.iterdir()) == [f"clip_{frame:06d}.jpg" for frame in range(5)]
    assert Image.open(out / "clip_000004.jpg").size == (64, 48)

    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3]))
    assert main([*command, "--resume"]) == 0
    assert [line["frame"] for line in lines_of(journal)] == [0, 1, 2, 3, 4]
    assert len(server.requests) == 5 + 2


def test_a_stream_by_its_url(server, clip, tmp_path, capsys):
    assert main([f"file://{clip}", "--url", server.url, "--out", str(tmp_path / "frames")]) == 0
    assert f"file://{clip}#4: 2 detections" in capsys.readouterr().out
    assert len(list((tmp_path / "frames").glob("stream_00000[0-4].jpg"))) == 5


def test_a_bad_video_fails_alone(server, clip, folder, tmp_path, capfd):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    inputs = [str(tmp_path / "bad.mp4"), str(tmp_path / "missing.mov"), f"{folder}/3.png", str(clip)]
    assert main([*inputs, "--url", server.url]) == 1
    out, err = capfd.readouterr()
    assert out.count("2 detections") == 6
    assert f"rcnn-detect: {tmp_path}/bad.mp4: OpenCV cannot open it" in err
    assert f"rcnn-detect: {tmp_path}/missing.mov: No such file" in err


def test_a_video_without_opencv_is_one_line(tmp_path):
    code = "import sys; sys.modules['cv2'] = None; from rcnn_client.tools.detect_cli import main; sys.exit(main(['clip.mp4']))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr == (
        "rcnn-detect: videos and cameras are read by OpenCV, which is not installed: "
        "pip install 'rcnn-client[video]'\n"
    )
