"""The inputs of rcnn-detect: files, folders, patterns, videos, cameras and stdin, as one series of pictures."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._picture_files import FORMATS
from .arguments import STDIO
from .newest import newest
from .picture_files import OTHER_SUFFIXES, picture_suffixes
from .video_file import CODECS
from .video_frames import is_live, is_video, opencv, read_frames, shown


class UsageError(ValueError):
    """The arguments cannot be used, alone or together; the message says which and why."""


@dataclass(frozen=True)
class Source:
    """An input that holds one picture, or a video that holds many.

    Attributes:
        given: path, URL, "camera:N" or "-" for stdin.
        is_video: whether it is read frame by frame.
        drawing: the file for its drawing, "-" for stdout. For a video it is a video, or a picture to whose name each
            frame's number is added. None means that it is not drawn.
    """

    given: str
    is_video: bool
    drawing: Path | None = None


@dataclass(frozen=True)
class Picture:
    """A picture to detect in.

    Attributes:
        number: its position among all pictures of the run, from 1.
        source: where it comes from.
        image: the picture as it is sent: a path, encoded bytes, or a frame as uint8 [height, width, 3] in RGB order.
        drawing: the file for its drawing, if it is drawn.
        frame: its position in a video, from 0; None if the source is not a video.
        time_s: when the frame is shown, in seconds after the first.
        fps: nominal frames a second of the video.
    """

    number: int
    source: Source
    image: Path | bytes | NDArray[np.uint8]
    drawing: Path | None
    frame: int | None = None
    time_s: float = 0.0
    fps: float = 0.0

    @property
    def file(self) -> str:
        """Its source as it was given, but without a password."""
        return shown(self.source.given)

    @property
    def name(self) -> str:
        """Its name in messages: its file, and for a frame also # and its number."""
        return self.file if self.frame is None else f"{self.file}#{self.frame}"


@dataclass(frozen=True)
class Unreadable:
    """A source that could not be read, or could not be read to its end, and the reason."""

    file: str
    reason: str


def find_sources(inputs: Sequence[str], out: str | None, say: Callable[[str], object]) -> list[Source]:
    """The sources that the arguments name, each with the file for its drawing.

    Args:
        inputs: files, folders, patterns, URLs, "camera:N" and "-".
        out: where drawings are written: the value of --out.
        say: called with a sentence if folders hold pictures that the server cannot decode.

    Raises:
        UsageError: a folder or pattern holds no picture, or the drawings cannot be written to `out`.
        RuntimeError: there is a video, and OpenCV is not installed.
    """
    found: list[tuple[str, str]] = []  # as given, and its path inside the folder of drawings
    skipped: Counter[str] = Counter()
    for given in inputs:
        found += _expand(given, out, skipped)
    if skipped:
        readable = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]}"
        say(f"skipped {_counted(skipped)}: the server decodes {readable}")
    if inputs.count(STDIO) > 1:
        raise UsageError("- is given twice: stdin holds one picture")
    are_videos = [is_video(given) for given, _ in found]
    if any(are_videos):
        opencv()
    is_single = len(found) == 1 and not are_videos[0] and not Path(inputs[0]).is_dir()
    if out and _is_video_file(Path(out)):
        if are_videos != [True]:
            raise UsageError(f"--out {out}: a video file takes the frames of one video; use a folder")
        drawings: list[Path | None] = [Path(out)]
    else:
        drawings = _drawings([name for _, name in found], out, is_single)
    _check_drawings([given for given, _ in found], drawings, out)
    columns = zip(found, are_videos, drawings, strict=True)
    return [Source(given, is_video, drawing) for (given, _), is_video, drawing in columns]


def read_pictures(
    sources: Sequence[Source], *, live: bool, say: Callable[[str], object]
) -> Generator[Picture | Unreadable, None, None]:
    """Yields every picture of the sources, in their order. Files are not read yet; only their paths are yielded.

    Args:
        live: whether frames of a video are dropped if they arrive faster than they are taken; their number is reported
            at the end.
        say: called with a sentence on what happens to a video.
    """
    numbers = count(1)
    for source in sources:
        if not source.is_video:
            image = sys.stdin.buffer.read() if source.given == STDIO else Path(source.given)
            yield Picture(next(numbers), source, image, source.drawing)
            continue
        name = shown(source.given)

        def say_dropped(num_dropped: int, num_frames: int, name: str = name) -> None:
            if num_frames:
                say(f"{name}: {num_dropped} of {num_frames} frames were dropped, to keep up with the video")

        frames = read_frames(source.given, in_real_time=live, say=say)
        with closing(newest(frames, say_dropped) if live else frames) as frames:
            try:
                for frame in frames:
                    drawing = source.drawing
                    if drawing is not None and not _is_video_file(drawing):
                        drawing = drawing.with_name(f"{drawing.stem}_{frame.number:06d}{drawing.suffix}")
                    number = next(numbers)
                    yield Picture(
                        number, source, frame.pixels, drawing, frame.number, frame.time_s, frame.fps
                    )
            except OSError as error:
                yield Unreadable(name, str(error))
            except UnicodeEncodeError:
                yield Unreadable(name, "OpenCV cannot open a file whose name is not UTF-8: rename it")


def count_pictures(sources: Sequence[Source]) -> int | None:
    """How many pictures the sources hold; None if they must be read to find out."""
    return None if any(source.is_video for source in sources) else len(sources)


def _expand(given: str, out: str | None, skipped: Counter[str]) -> list[tuple[str, str]]:
    path = Path(given)
    if path.is_dir():
        return _pictures_below(path, out, skipped)
    if given == STDIO:
        return [(given, "stdin.png")]
    if given.isdecimal() and not path.exists():  # a camera's number in OpenCV
        given = f"camera:{given}"
    if is_live(given):
        return [(given, "camera" + given.partition(":")[2] if "://" not in given else "stream")]
    if not path.exists() and glob.has_magic(given):
        matches = sorted(glob.glob(given, recursive=True))  # noqa: PTH207 -- Path's takes no absolute pattern
        if not matches:
            raise UsageError(f"{given}: no file matches this pattern")
        return [each for match in matches for each in _expand(match, out, skipped)]
    return [(given, path.name)]


def _pictures_below(folder: Path, out: str | None, skipped: Counter[str]) -> list[tuple[str, str]]:
    """The pictures of a folder and its subfolders, by name, without the drawings of an earlier run.

    Those that the server cannot decode are added to `skipped`, by their extension.
    """
    drawn = Path(out).resolve() if out else None
    if drawn and (drawn == folder.resolve() or not drawn.is_relative_to(folder.resolve())):
        drawn = None
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in picture_suffixes() | OTHER_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
        and not (drawn and path.resolve().is_relative_to(drawn))
    ]
    paths = [path for path in files if path.suffix.lower() in picture_suffixes()]
    others = Counter(path.suffix.lower() for path in files if path.suffix.lower() in OTHER_SUFFIXES)
    if not paths:
        found = f"; found {_counted(others)}, which the server cannot decode" if others else ""
        raise UsageError(f"{folder} holds no picture: expected files such as .jpg or .png{found}")
    skipped += others
    return [(str(path), str(path.relative_to(folder))) for path in paths]


def _counted(suffixes: Counter[str]) -> str:
    """Such as "2 .heic and 1 .ppm"."""
    return " and ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))


def _drawings(names: list[str], out: str | None, is_single: bool) -> list[Path | None]:
    """The files for the drawings: in a folder under the pictures' names, or one file for a single picture."""
    if out is None:
        return [None] * len(names)
    path = Path(out)
    is_picture = Image.registered_extensions().get(path.suffix.lower()) in Image.SAVE
    if out == STDIO or (is_picture and not path.is_dir()):
        if not is_single:
            raise UsageError(
                f"--out {out}: several pictures need a folder, not {'stdout' * (out == '-') or 'a file'}"
            )
        return [path]
    if path.suffix and not path.is_dir() and is_single:
        raise UsageError(f"--out {out}: expected a folder, or a file such as .png or .jpg")
    return [path / _drawing_name(name) for name in names]


def _is_video_file(path: Path) -> bool:
    return path.suffix.lower() in CODECS and not path.is_dir()


def _drawing_name(name: str) -> Path:
    """JPEGs and frames are written as JPEG, which is quick; everything else as PNG."""
    path = Path(name)
    if Image.registered_extensions().get(path.suffix.lower()) in ("JPEG", "MPO"):
        return path
    return path.with_suffix(".jpg" if is_video(name) or not path.suffix else ".png")


def _check_drawings(given: list[str], drawings: list[Path | None], out: str | None) -> None:
    """Raises UsageError if a drawing would overwrite a picture or video, or the drawing of another one."""
    files = [name.removeprefix("file://") for name in given if name != STDIO]
    taken = {Path(name).resolve() for name in files} if out else set()
    for path in drawings:
        if path is None or str(path) == STDIO:
            continue
        if path.resolve() in taken:
            raise UsageError(
                f"--out {out}: {path} would overwrite a picture or video, or the drawing of another one"
            )
        taken.add(path.resolve())
