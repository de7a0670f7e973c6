"""The frames of files, streams and cameras: their order, their times, and the errors that can occur."""

import contextlib
import http.server
import io
import struct
import threading
import time

import numpy as np
import pytest
from PIL import Image
from rcnn_client.tools import video_frames
from rcnn_client.tools.newest import newest
from rcnn_client.tools.video_frames import Frame, read_frames, shown

cv2 = pytest.importorskip("cv2")


def write_clip(path, num_frames=10, fps=10, size=(64, 48)):
    """A video whose red grows by 20 with each frame; the lower half is blue."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    for number in range(num_frames):
        frame = np.zeros((size[1], size[0], 3), np.uint8)
        frame[:, :, 2] = 20 * number % 240
        frame[size[1] // 2 :, :, 0] = 200
        writer.write(frame)
    writer.release()
    return path


def read(given, **options):
    """All frames, and the messages that were reported."""
    said = []
    frames = list(read_frames(str(given), **{"in_real_time": False, "say": said.append} | options))
    return frames, said


def test_frames_in_their_order_with_their_times(tmp_path):
    frames, said = read(write_clip(tmp_path / "clip.mp4"))
    assert [frame.number for frame in frames] == list(range(10)) and said == []
    assert [frame.time_s for frame in frames] == pytest.approx([number / 10 for number in range(10)])
    assert {frame.fps for frame in frames} == {10}
    for frame in frames:
        red, _, blue = frame.pixels[:20].mean(axis=(0, 1))
        assert abs(red - 20 * frame.number) < 12 and blue < 12
        assert frame.pixels.dtype == np.uint8 and frame.pixels.shape == (48, 64, 3)


def test_a_video_filmed_with_the_phone_turned_is_upright(tmp_path):
    content = bytearray(write_clip(tmp_path / "clip.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44  # the matrix 0, 1, -1, 0 is a quarter turn clockwise
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    frames, _ = read(tmp_path / "turned.mp4")
    assert frames[0].pixels.shape == (64, 48, 3)
    blue = frames[0].pixels[:, :, 2]
    assert blue[:, :20].mean() > 150 and blue[:, -20:].mean() < 20  # the lower half is now at the left


def test_a_variable_frame_rate(tmp_path):
    """Five frames of 0.1 s each, then five of 0.05 s each."""
    content = bytearray(write_clip(tmp_path / "clip.mp4").read_bytes())
    times = content.index(b"stts")
    count, ticks = struct.unpack_from(">II", content, times + 12)
    assert content[times + 8 : times + 12] == b"\0\0\0\1" and count == 10
    content[times + 8 : times + 20] = struct.pack(">5I", 2, 5, ticks, 5, ticks // 2)
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):  # each grows by 8 bytes
        start = content.index(box) - 4
        struct.pack_into(">I", content, start, struct.unpack_from(">I", content, start)[0] + 8)
    (tmp_path / "varies.mp4").write_bytes(content)
    frames, said = read(tmp_path / "varies.mp4")
    expected = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7]
    assert [frame.time_s for frame in frames] == pytest.approx(expected, abs=1e-3) and said == []


def test_a_file_without_times_gets_times_from_its_frame_rate(tmp_path, monkeypatch):
    class Timeless(video_frames._Capture):
        def read(self):
            return ((pixels, 0.0) for pixels, _ in super().read())

    monkeypatch.setattr(video_frames, "_Capture", Timeless)
    frames, _ = read(write_clip(tmp_path / "clip.mp4"))
    assert [frame.time_s for frame in frames] == pytest.approx([number / 10 for number in range(10)])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "OpenCV cannot open it"), (b"no video" * 99, "OpenCV cannot open it")],
)
def test_what_is_no_video(tmp_path, content, message):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OSError, match=message):
        read(path)


def test_a_camera_that_is_not_there():
    with pytest.raises(OSError, match="OpenCV cannot open it"):
        read("camera:99")


def test_a_file_that_is_cut_off_is_read_to_where_it_ends(tmp_path):
    content = write_clip(tmp_path / "clip.avi", num_frames=40).read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    frames, said = read(tmp_path / "cut.avi")
    assert 2 < len(frames) < 35
    assert said == [
        f"{tmp_path}/cut.avi: it ends after {frames[-1].time_s:.1f} of 4.0 s; is it cut off or damaged?"
    ]


def test_a_file_in_real_time_takes_as_long_as_it_plays(tmp_path):
    started = time.monotonic()
    frames, _ = read(write_clip(tmp_path / "clip.mp4", num_frames=5), in_real_time=True)
    assert len(frames) == 5 and time.monotonic() - started >= 0.4


@pytest.fixture
def ip_camera():
    """A camera that sends three frames on each of the first two connections and then none; yields its URL."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 0, 0)).save(buffer, "JPEG")
    part = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n"
    connections = []

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            connections.append(self.headers["Authorization"])
            self.send_response(200 if len(connections) <= 2 else 503)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            if len(connections) <= 2:
                with contextlib.suppress(OSError):
                    self.wfile.write(3 * (part % (len(buffer.getvalue()), buffer.getvalue())))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{server.server_port}/video.mjpg"
        server.shutdown()


def test_a_stream_that_stops_is_opened_again_and_given_up_in_the_end(ip_camera, monkeypatch):
    monkeypatch.setattr(video_frames, "RECONNECT_AFTER_S", (0.01, 0.02))
    said, frames = [], []
    name = ip_camera.replace("secret", "***")
    with pytest.raises(OSError, match="it stopped after 6 frames, and 2 attempts to open it again failed"):
        for frame in read_frames(ip_camera, in_real_time=True, say=said.append):
            frames.append(frame)
    assert [frame.number for frame in frames] == list(range(6))
    assert np.all(np.diff([frame.time_s for frame in frames]) > 0)
    assert said == [
        f"{name}: it stopped after 3 frames; opening it again in 0.01 s",
        f"{name}: it stopped after 6 frames; opening it again in 0.01 s",
        f"{name}: it stopped after 6 frames; opening it again in 0.02 s",
    ]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("rtsp://user:p@ss:word@camera:554/a", "rtsp://user:***@camera:554/a"),
        ("rtsp://camera:554/a:b@c", "rtsp://camera:554/a:b@c"),
        ("clip.mp4", "clip.mp4"),
    ],
)
def test_a_password_is_not_shown(given, name):
    assert shown(given) == name


def test_the_newest_is_taken_and_the_others_are_dropped():
    may_come = threading.Semaphore(0)
    counts, closed = [], []

    def items():
        try:
            for number in range(10):
                may_come.acquire()
                yield number
            raise OSError("stopped")
        finally:
            closed.append(True)

    taken = newest(items(), lambda *count: counts.append(count))
    may_come.release()
    assert next(taken) == 0
    may_come.release(9)
    time.sleep(0.3)
    assert next(taken) == 9
    with pytest.raises(OSError, match="stopped"):
        next(taken)
    assert counts == [(8, 10)] and closed == [True]


def test_newest_drops_nothing_if_there_is_time_for_every_frame():
    def items():
        for number in range(5):
            time.sleep(0.05)
            yield Frame(number, np.zeros((1, 1, 3), np.uint8), number / 20, 20)

    counts = []
    taken = newest(items(), lambda *count: counts.append(count))
    assert [frame.number for frame in taken] == list(range(5)) and counts == [(0, 5)]


def test_a_caller_that_stops_taking_frames_ends_the_reading():
    closed = threading.Event()

    def items():
        try:
            while True:
                time.sleep(0.01)
                yield 0
        finally:
            closed.set()

    counts = []
    taken = newest(items(), lambda *count: counts.append(count))
    next(taken)
    taken.close()
    assert closed.wait(timeout=5) and len(counts) == 1
