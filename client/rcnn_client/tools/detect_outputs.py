"""The outputs of rcnn-detect: a table, drawings, and lines of JSON from which a run can be resumed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size

from .. import Detections, draw_detections
from .arguments import STDIO
from .coco_shapes import shape_fields
from .detect_inputs import Picture, UsageError
from .video_file import VideoFile

MAX_CLASS_WIDTH = 35  # so that the table has at most 80 columns
# One picture's detections: class_name, label, score, box (x1, y1, x2, y2), track_id if they are tracked, and the
# fields of coco_shapes.
Found = list[dict[str, Any]]


def as_json(detections: Detections) -> Found:
    """The detections for JSON; each float32 is written so that reading it gives the same value."""
    columns = detections.class_names, detections.labels.tolist(), detections.scores, detections.boxes
    ids = [None] * len(detections) if detections.track_ids is None else detections.track_ids.tolist()
    return [
        {
            "class_name": name,
            "label": label,
            "score": float(str(score)),
            "box": [float(str(edge)) for edge in box],
            **({} if track_id is None else {"track_id": track_id}),
            **shapes,
        }
        for name, label, score, box, track_id, shapes in zip(
            *columns, ids, shape_fields(detections), strict=True
        )
    ]


def table(name: str, detections: Detections) -> str:
    """A table for human readers: the picture's name, then a row for each detection."""
    count = len(detections)
    lines = [f"{name}: {count or 'no'} detection{'' if count == 1 else 's'}"]
    if count:
        titles = detections.titles()
        width = min(MAX_CLASS_WIDTH, max(5, *map(cell_len, titles)))
        lines.append(f"  {'class':{width}}  score {'x1':>8} {'y1':>8} {'x2':>8} {'y2':>8}")
        for title, detection in zip(titles, detections, strict=True):
            box = " ".join(f"{edge:8.1f}" for edge in detection.box)
            lines.append(f"  {_fit(title, width)}  {detection.score:5.3f} {box}")
    return "\n".join(lines)


def _fit(text: str, width: int) -> str:
    """The text padded to that many cells of a terminal, or cut."""
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def draw(picture: Picture, detections: Detections, video: VideoFile | None) -> str | None:
    """Write the picture's drawing, if it has one; returns the reason if that failed, otherwise None.

    Args:
        video: the video that drawings of frames are written to, if they are not written to separate files.

    Raises:
        RuntimeError: the video cannot be written.
    """
    if picture.drawing is None:
        return None
    try:
        drawing = draw_detections(picture.image, detections)
        if video is not None:
            video.write(drawing, picture.time_s, picture.fps)
        elif str(picture.drawing) == STDIO:
            drawing.save(sys.stdout.buffer, "PNG")
        else:
            picture.drawing.parent.mkdir(parents=True, exist_ok=True)
            drawing.save(picture.drawing, quality=92)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        return f"not drawn to {picture.drawing}: {error}"
    return None


class JsonLines:
    r"""Writes one line of JSON for each picture, after all other outputs of the picture.

    A later run can resume from the file. Each line holds the settings of its run, and only a run with the same
    settings can resume. It first removes the lines of pictures that failed, and an incomplete last line.

    A byte of a file name that is not UTF-8 is written as a JSON escape, \udc80 to \udcff. Python reads the escape as
    the file's own name; `os.fsencode` gives its bytes.

    Args:
        target: a file, or "-" for stdout.
        settings: the settings that the answers depend on; written to every line.
        resume: whether to continue a file that exists.

    Raises:
        UsageError: the file exists and `resume` is false, or it cannot be resumed.
        OSError: it cannot be written.
    """

    def __init__(self, target: str, settings: Mapping[str, Any], resume: bool) -> None:
        self._settings = dict(settings)
        self._offsets: dict[str, int] = {}  # of the line of each picture that was answered before
        self._stream: TextIO = sys.stdout
        if target != STDIO:
            path = Path(target)
            if path.is_file() and path.stat().st_size:
                if not resume:
                    raise UsageError(f"--json {path} exists: add --resume to continue it, or delete it")
                self._keep_answered(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("a", encoding="utf-8")
        self._path = Path(target)

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not sys.stdout:
            self._stream.close()

    def __contains__(self, name: str) -> bool:
        """Whether the picture was answered before."""
        return name in self._offsets

    def earlier(self, name: str) -> Found:
        """The detections of a picture that was answered before."""
        with self._path.open("rb") as file:
            file.seek(self._offsets[name])
            found: Found = json.loads(file.readline())["detections"]
            return found

    def write(self, file: str, frame: int | None, found: Found | None, error: str | None) -> None:
        """Add a picture's line."""
        line: dict[str, Any] = {"file": file}
        for key, value in (("frame", frame), ("error", error), ("detections", found)):
            if value is not None:
                line[key] = value
        text = json.dumps(line | self._settings, ensure_ascii=False)
        # In UTF-8 only surrogates cannot be encoded, and Python's escapes for them are JSON's.
        print(text.encode(errors="backslashreplace").decode(), file=self._stream, flush=True)

    def _keep_answered(self, path: Path) -> None:
        """Remove all lines but those of pictures that were answered, and note their offsets."""
        kept = path.with_name(f"{path.name}.resumed")
        with path.open("rb") as before, kept.open("wb") as after:
            for number, raw in enumerate(before, start=1):
                if not raw.endswith(b"\n"):
                    break
                try:
                    line = json.loads(raw)
                    name = line["file"] if "frame" not in line else f"{line['file']}#{line['frame']}"
                    settings = {key: line[key] for key in self._settings}
                except (ValueError, KeyError, TypeError) as error:
                    kept.unlink()
                    raise UsageError(
                        f"--json {path}: line {number} was not written by rcnn-detect"
                    ) from error
                if settings != self._settings:
                    kept.unlink()
                    raise UsageError(
                        f"--json {path}: line {number} was written with {_listed(settings)}, this run has "
                        f"{_listed(self._settings)}: use the same settings, or another file"
                    )
                if "error" not in line:
                    self._offsets[name] = after.tell()
                    after.write(raw)
        kept.replace(path)


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in settings.items())
