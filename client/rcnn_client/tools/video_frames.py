"""The frames of video files, cameras and streams, read by OpenCV."""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
RECONNECT_AFTER_S = (1, 2, 4, 8, 16, 30)  # waits for a camera or stream that stopped; then it is given up
LONGEST_GAP_S = 10.0  # between two frames; a longer one is an error of the file, or a stream that stopped
USUAL_FPS = 30.0  # if the file gives none, or one that cannot be right


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        number: its position, from 0; it continues when a stream is connected again.
        pixels: uint8 [height, width, 3] in RGB order, upright.
        time_s: when it is shown, in seconds after the first frame; for a camera or stream, when it arrived.
        fps: nominal frames per second of the video; if the rate varies, about the mean.
    """

    number: int
    pixels: NDArray[np.uint8]
    time_s: float
    fps: float


def is_live(given: str) -> bool:
    """Whether it is a URL or a camera."""
    return "://" in given or (given.startswith("camera:") and given[len("camera:") :].isdecimal())


def is_video(given: str) -> bool:
    """Whether it is read frame by frame."""
    return is_live(given) or Path(given).suffix.lower() in VIDEOS


def shown(given: str) -> str:
    """Its name in messages and results: a URL without its password."""
    return re.sub(r"(://[^/:@]*):[^/]*@", r"\1:***@", given)


def opencv() -> Any:
    """OpenCV, set to print nothing: its own and FFmpeg's messages about bad files would mix with ours.

    Raises:
        RuntimeError: it is not installed, or cannot be loaded.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's AV_LOG_QUIET
    try:
        cv2: Any = importlib.import_module("cv2")
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "videos and cameras are read by OpenCV, which is not installed: pip install 'rcnn-client[video]'"
        ) from error
    except ImportError as error:  # opencv-python, unlike -headless, needs desktop libraries
        raise RuntimeError(
            f"videos and cameras are read by OpenCV, which cannot be loaded: {error}"
        ) from error
    cv2.setLogLevel(0)
    return cv2


def read_frames(
    given: str, *, in_real_time: bool, say: Callable[[str], object]
) -> Generator[Frame, None, None]:
    """The frames of a video file, URL or "camera:N".

    The rotation that the file specifies is applied. If a camera or a stream without an end stops, it is opened again,
    after increasingly long waits.

    Args:
        given: as OpenCV takes it, or "camera:N".
        in_real_time: whether the frames of a file are yielded at the speed of the video, like those of a camera.
        say: called with a sentence when it is opened again, or if a file ends early.

    Raises:
        OSError: it cannot be opened, has no frame, or has stopped and cannot be opened again.
        UnicodeEncodeError: OpenCV cannot open a file of that name.
    """
    cv2 = opencv()
    name, number, last_s = shown(given), 0, 0.0
    waits = iter(RECONNECT_AFTER_S)
    while True:
        with closing(_Capture(cv2, given)) as video:
            if number == 0:
                first = video
                if not video.is_open:
                    is_missing = not is_live(given) and not Path(given).exists()
                    raise OSError(
                        "No such file" if is_missing else "OpenCV cannot open it: is it a video, or a camera?"
                    )
                started = time.monotonic()
            for pixels, clock_s in video.read():
                if number == 0:
                    first_s = clock_s
                time_s = clock_s - first_s
                if number and not time_s > last_s:  # the file gives no times, or wrong ones
                    time_s = last_s + 1 / first.fps
                if in_real_time and first.has_end:
                    time.sleep(min(max(0.0, started + time_s - time.monotonic()), LONGEST_GAP_S))
                waits = iter(RECONNECT_AFTER_S)
                yield Frame(number, pixels, time_s, first.fps)
                number, last_s = number + 1, time_s
        if number == 0:
            raise OSError("OpenCV finds no frame in it")
        if first.has_end:
            if max(clock_s, time_s) + 1 / first.fps < 0.9 * first.length_s:
                say(
                    f"{name}: it ends after {time_s:.1f} of {first.length_s:.1f} s; is it cut off or damaged?"
                )
            return
        wait_s = next(waits, None)
        if wait_s is None:
            raise OSError(
                f"it stopped after {number} frames, and {len(RECONNECT_AFTER_S)} attempts to open it again failed"
            )
        say(f"{name}: it stopped after {number} frames; opening it again in {wait_s} s")
        time.sleep(wait_s)


class _Capture:
    """An open video of OpenCV.

    Attributes:
        has_end: whether it is a file, here or at a URL.
        fps: nominal frames per second.
        length_s: its length in seconds, as the file states it.
    """

    def __init__(self, cv2: Any, given: str) -> None:
        self._cv2 = cv2
        if is_live(given) and "://" not in given:
            self._video = cv2.VideoCapture(int(given.removeprefix("camera:")))
        else:  # OpenCV's other readers print errors on stderr
            has_ffmpeg = cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG)
            self._video = cv2.VideoCapture(given, cv2.CAP_FFMPEG if has_ffmpeg else cv2.CAP_ANY)
        self._video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # phone videos need it; off in some versions
        self.is_open = bool(self._video.isOpened())
        num_frames = self._video.get(cv2.CAP_PROP_FRAME_COUNT)  # for some files, this is the length times fps
        self.has_end = not is_live(given) or num_frames > 0
        fps = self._video.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0.1 <= fps <= 240 else USUAL_FPS
        self.length_s = num_frames / fps if num_frames > 0 and fps > 0 else 0.0

    def read(self) -> Iterator[tuple[NDArray[np.uint8], float]]:
        """Each frame in RGB order, and its time in seconds: by the file's clock, or for a stream by this host's clock."""
        while self.is_open:
            has_frame, pixels = self._video.read()
            if not has_frame:
                return
            milliseconds = self._video.get(self._cv2.CAP_PROP_POS_MSEC)
            time_s = milliseconds / 1000 if self.has_end else time.monotonic()
            yield self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB), time_s

    def close(self) -> None:
        self._video.release()
