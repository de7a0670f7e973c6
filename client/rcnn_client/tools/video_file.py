"""Drawn frames as a video file, written by OpenCV."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from .video_frames import LONGEST_GAP_S, opencv

# The wheels of OpenCV have no encoder for H.264.
CODECS = {".avi": "MJPG", ".m4v": "mp4v", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v"}
MOST_EARLY = 2  # if the rate varies, a frame is shown even if it is this many frames early


class VideoFile:
    """Writes frames to a video file that shows each frame from its own time until the next one.

    The file has a constant frame rate: a frame is repeated if the next is missing, because frames were dropped or
    the rate of the source varies. All frames have the size of the first; others are resized.

    Args:
        path: the file, which is overwritten; its suffix is one of CODECS.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cv2 = opencv()
        self._writer: Any = None
        self._frame: Any = None  # the last one, not yet written, because its duration is not known
        self._position = 0  # of the last frame, in frames of the file
        self._cut = 0  # frames that were cut: before the first, and in long gaps

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._frame is not None:
            self._writer.write(self._frame)
            self._writer.release()

    def write(self, drawing: Image.Image, time_s: float, fps: float) -> None:
        """Add a frame.

        Args:
            drawing: mode RGB.
            time_s: when it is shown, in seconds of the source; the file begins with its first frame.
            fps: frames per second of the file; only the first frame's value is used.

        Raises:
            RuntimeError: the file cannot be written.
        """
        if self._writer is None:
            self._open(drawing.size, fps)
            self._cut = round(time_s * fps)
        else:
            late = round(time_s * self._fps) - self._cut - self._position
            if -MOST_EARLY <= late < 1:
                late = 1
            if late > (longest := round(LONGEST_GAP_S * self._fps)):
                self._cut += late - longest
                late = longest
            for _ in range(late):
                self._writer.write(self._frame)
                self._position += 1
        pixels = self._cv2.cvtColor(np.asarray(drawing), self._cv2.COLOR_RGB2BGR)
        self._frame = pixels if drawing.size == self._size else self._cv2.resize(pixels, self._size)

    def _open(self, size: tuple[int, int], fps: float) -> None:
        self._size, self._fps = size, fps
        self._path.parent.mkdir(parents=True, exist_ok=True)
        codec = self._cv2.VideoWriter_fourcc(*CODECS[self._path.suffix.lower()])
        writer = self._cv2.VideoWriter(str(self._path), self._cv2.CAP_FFMPEG, codec, fps, size)
        if not writer.isOpened():
            raise RuntimeError(
                f"--out {self._path}: OpenCV cannot write a video of {size[0]}x{size[1]} pixels there"
            )
        self._writer = writer
