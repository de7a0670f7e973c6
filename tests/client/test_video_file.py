"""Drawn frames as a video file."""

import pytest
from PIL import Image
from rcnn_client.tools.video_file import CODECS, VideoFile

cv2 = pytest.importorskip("cv2")


def grey(value: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, (value,) * 3)


def values(path) -> list[int]:
    """The grey of each frame, rounded to a multiple of 20."""
    video = cv2.VideoCapture(str(path))
    frames = []
    while (frame := video.read()[1]) is not None:
        frames.append(20 * round(frame.mean() / 20))
    return frames


@pytest.mark.parametrize("suffix", CODECS)
def test_every_frame_is_in_the_file(tmp_path, suffix):
    with VideoFile(tmp_path / "new" / f"drawn{suffix}") as video:
        for number in range(10):
            video.write(grey(20 * number), number / 25, fps=25)
    assert values(tmp_path / "new" / f"drawn{suffix}") == list(range(0, 200, 20))


@pytest.mark.parametrize(
    ("times_s", "expected"),
    [
        ([0, 0.1, 0.4, 0.5], [0, 40, 40, 40, 80, 120]),  # two frames are missing
        ([3, 3.1, 3.2], [0, 40, 80]),  # the first frames are missing
        ([0, 0.02, 0.14, 0.3], [0, 40, 80, 120]),  # the rate varies around 10 frames a second
        ([0, 0.1, 5000, 5000.1], [0] + 100 * [40] + [80, 120]),  # a wrong time: ten seconds at most
        ([0], [0]),
    ],
)
def test_each_frame_is_shown_until_the_time_of_the_next(tmp_path, times_s, expected):
    with VideoFile(tmp_path / "drawn.mp4") as video:
        for number, time_s in enumerate(times_s):
            video.write(grey(40 * number), time_s, fps=10)
    assert values(tmp_path / "drawn.mp4") == expected


def test_frames_have_the_size_of_the_first(tmp_path):
    with VideoFile(tmp_path / "drawn.mp4") as video:
        video.write(grey(100), 0, fps=10)
        video.write(grey(200, size=(32, 80)), 0.1, fps=10)
    assert values(tmp_path / "drawn.mp4") == [100, 200]


def test_colours_are_kept_and_no_file_is_written_without_a_frame(tmp_path):
    with VideoFile(tmp_path / "red.mp4") as video:
        video.write(Image.new("RGB", (64, 48), (200, 0, 0)), 0, fps=10)
    blue, green, red = cv2.VideoCapture(str(tmp_path / "red.mp4")).read()[1].mean(axis=(0, 1))
    assert abs(red - 200) < 10 and max(blue, green) < 10
    with VideoFile(tmp_path / "none.mp4"):
        pass
    assert not (tmp_path / "none.mp4").exists()


def test_a_file_that_cannot_be_written(tmp_path, capfd):
    (tmp_path / "drawn.mp4").mkdir()
    with VideoFile(tmp_path / "drawn.mp4") as video, pytest.raises(RuntimeError) as raised:
        video.write(grey(0), 0, fps=10)
    assert (
        str(raised.value) == f"--out {tmp_path}/drawn.mp4: OpenCV cannot write a video of 64x48 pixels there"
    )
    assert capfd.readouterr() == ("", "")
