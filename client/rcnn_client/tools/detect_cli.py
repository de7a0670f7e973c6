"""rcnn-detect: pictures in; a table of detections, drawings, JSON or COCO results out."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from rich.progress import Progress

from .._client import Detector
from .._detections import Detections
from .._errors import InvalidImageError, InvalidParameterError, RcnnError
from .._images import image_name
from .._options import DetectOptions
from .._results import Result
from .._tracking import LOWEST_SCORE, Tracker
from .arguments import STDIO
from .certificates import tls_config
from .console import complain, escape_what_cannot_be_encoded, progress_bar, stderr
from .detect_arguments import OVERLAP, PROG, parse
from .detect_coco import CocoResults, ImageIds
from .detect_inputs import (
    Picture,
    Source,
    Unreadable,
    UsageError,
    count_pictures,
    find_sources,
    read_pictures,
)
from .detect_outputs import Found, JsonLines, as_json, draw, table
from .video_file import CODECS, VideoFile

Image: TypeAlias = Path | bytes | NDArray[np.uint8]  # a picture as it is sent
MAX_TILED_PIXELS = 500_000_000  # Pillow warns above it, and refuses more than twice as many
GIVE_UP_AFTER = 10  # after the server failed on this many pictures in a row


def main(argv: Sequence[str] | None = None) -> int:
    """Run rcnn-detect; returns the exit code, see its help. Wrong usage exits with 2."""
    escape_what_cannot_be_encoded()
    parser, args = parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file may have any bytes
    try:
        sources = find_sources(args.inputs, args.out, lambda line: complain(PROG, line))
        _check_videos(args, sources)
        with _Run(args, sources) as run:
            return run.detect()
    except UsageError as error:
        parser.error(str(error))
    except InvalidParameterError as error:
        complain(PROG, error)
        return 2
    except BrokenPipeError:  # the reader of stdout closed it; Python must not flush it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RcnnError, OSError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        return complain(PROG, error)
    except KeyboardInterrupt:
        can_resume = args.json not in (None, STDIO) and not args.track and not args.live
        again = "; to continue, run the same command with --resume" if can_resume else ""
        complain(PROG, f"interrupted{again}")
        return 130


def _check_videos(args: argparse.Namespace, sources: list[Source]) -> None:
    """Raises UsageError if an option for videos cannot be applied."""
    pictures = [source.given for source in sources if not source.is_video]
    if pictures and args.track:
        raise UsageError(f"--track follows objects through a video, but {pictures[0]} is a picture")
    if pictures and args.live:
        raise UsageError(f"--live drops frames of a video, but {pictures[0]} is a picture")
    if args.resume and (args.track or args.live):
        option = "--track" if args.track else "--live"
        raise UsageError(f"--resume cannot continue with {option}: earlier frames are no longer known")
    if args.resume and _video_file(sources):
        raise UsageError(f"--resume cannot continue the video {args.out}: use a folder for its frames")


def _video_file(sources: list[Source]) -> Path | None:
    """The video that the drawings are written to, if they are not written to separate files."""
    drawing = sources[0].drawing
    return drawing if drawing is not None and drawing.suffix.lower() in CODECS else None


class _Run:
    """One run: the connection, the output files, and the count of pictures that failed."""

    def __init__(self, args: argparse.Namespace, sources: list[Source]) -> None:
        self._args, self._sources = args, sources
        self._pending: deque[Picture] = deque()  # sent and not yet answered, in their order
        self._num_answered = self._num_earlier = self._num_failed = self._num_without_id = 0
        self._tiles = args.tile_hw and {
            "tile_hw": list(args.tile_hw),
            "overlap": OVERLAP if args.overlap is None else args.overlap,
            "merge": args.merge,
            "whole": args.whole is not False,
        }
        self._tracker: Tracker | None = Tracker(args.score_thresh) if args.track else None
        self._tracked: Source | None = None  # the video that the tracker follows
        with ExitStack() as stack:
            pictures = read_pictures(sources, live=args.live, say=lambda line: complain(PROG, line))
            self._pictures = stack.enter_context(closing(pictures))
            self._ids = ImageIds(args.annotations)
            self._detector = stack.enter_context(
                Detector(
                    args.url,
                    args.model,
                    timeout_s=args.timeout_s,
                    tls=tls_config(args),
                    headers=dict(args.header),
                )
            )
            self._progress = self._start_progress(stack)
            settings = {
                "model": args.model,
                "score_thresh": args.score_thresh,
                "classes": args.classes,
                "mask_thresh": args.mask_thresh,
                "tiles": self._tiles,
            }
            self._lines = self._coco = None
            if args.json:
                self._lines = stack.enter_context(JsonLines(args.json, settings, args.resume))
            if args.coco:
                if args.annotations:
                    self._ids.match(self._detector.info().class_names)
                self._coco = stack.enter_context(CocoResults(args.coco, self._ids))
            self._video = None
            if path := _video_file(sources):
                self._video = stack.enter_context(VideoFile(path))
            self._stack = stack.pop_all()

    def __enter__(self) -> _Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def detect(self) -> int:
        """Detect in all pictures; returns the exit code, 0 or 1.

        Raises:
            RcnnError: the server, or the model, cannot be used at all.
        """
        args, in_a_row = self._args, 0
        shows_masks = args.out or args.json or args.coco
        options = DetectOptions(
            score_thresh=min(LOWEST_SCORE, args.score_thresh) if args.track else args.score_thresh,
            classes=args.classes,
            masks="rle" if shows_masks else "none",
            mask_thresh=args.mask_thresh,
        )
        if self._tiles:
            stream = self._detect_tiled(options)
        else:
            stream = self._detector.detect_stream(self._images(), in_flight=args.in_flight, **options)
        for position, result in enumerate(stream):
            picture = self._pending.popleft()
            if result.error is None:
                self._answer(picture, result.detections)
            else:
                sent_as = image_name(picture.image, "image" if self._tiles else f"image {position}")
                self._fail(picture.file, picture.frame, str(result.error).removeprefix(f"{sent_as}: "))
            self._progress.advance(self._task)
            server_failed = result.error is not None and not isinstance(result.error, InvalidImageError)
            in_a_row = in_a_row + 1 if server_failed else 0
            if in_a_row == GIVE_UP_AFTER:
                stream.close()
                complain(
                    PROG,
                    f"the server failed on {in_a_row} pictures in a row; the remaining pictures are not sent",
                )
                break
        self._sum_up()
        return 1 if self._num_failed or self._num_without_id else 0

    def _detect_tiled(self, options: DetectOptions) -> Generator[Result[Image], None, None]:
        """Yields the result of each picture, as `detect_stream` does; the tiles of one are sent at the same time."""
        PIL.Image.MAX_IMAGE_PIXELS = MAX_TILED_PIXELS
        self._detector.info()  # ends the run if the server, or the model, cannot be used
        for image in self._images():
            try:
                answer: Detections | RcnnError = self._detector.detect_tiled(
                    image, in_flight=self._args.in_flight, **self._tiles, **options
                )
            except InvalidParameterError:
                raise
            except RcnnError as error:
                answer = error
            yield Result(image, answer)

    def _start_progress(self, stack: ExitStack) -> Progress:
        """A progress bar, shown only if stderr is a terminal and no results go to stdout as a file."""
        args, total = self._args, count_pictures(self._sources)
        # while the bar is shown, rich redirects stdout to the bar's console, stderr; keep a redirected stdout as it is
        self._table_to = None if sys.stdout.isatty() else sys.stdout
        progress = progress_bar()
        progress.disable = not stderr.is_terminal or total == 1 or STDIO in (args.out, args.json, args.coco)
        self._task = progress.add_task(args.model, total=total)
        return progress if progress.disable else stack.enter_context(progress)

    def _images(self) -> Iterator[Image]:
        """Yields the images to send; the others are reported or skipped here."""
        for picture in self._pictures:
            if isinstance(picture, Unreadable):
                self._fail(picture.file, None, picture.reason)
                continue
            if self._lines and picture.name in self._lines:
                self._write_coco(picture, self._lines.earlier(picture.name))
                self._skip()
                continue
            if self._coco and not self._lines and not self._args.out:  # nothing else needs the answer
                try:
                    self._ids.image_id(picture)
                except ValueError as error:
                    self._fail(picture.file, picture.frame, str(error))
                    self._progress.advance(self._task)
                    continue
            self._pending.append(picture)
            yield picture.image

    def _skip(self) -> None:
        """Count a picture that an earlier run answered; the speed in the progress bar does not include it."""
        self._num_earlier += 1
        if (total := self._progress.tasks[0].total) is not None:
            self._progress.update(self._task, total=total - 1)

    def _answer(self, picture: Picture, detections: Detections) -> None:
        if self._tracker is not None:
            if self._tracked not in (None, picture.source):
                self._tracker = Tracker(self._args.score_thresh)
            self._tracked = picture.source
            detections = self._tracker.update(detections)
        found = as_json(detections) if self._lines or self._coco else []
        if not self._lines and not self._coco and self._args.out != STDIO:
            print(table(picture.name, detections), file=self._table_to)
        self._write_coco(picture, found)
        if reason := draw(picture, detections, self._video):
            self._fail(picture.file, picture.frame, reason, found)
            return
        self._num_answered += 1
        if self._lines:
            self._lines.write(picture.file, picture.frame, found, None)

    def _write_coco(self, picture: Picture, found: Found) -> None:
        """Add the records of a picture to the COCO results; a picture without an image id is left out."""
        try:
            if self._coco:
                self._coco.write(picture, found)
        except ValueError as error:
            self._num_without_id += 1
            complain(PROG, f"{picture.name}: {error}; --coco leaves it out")

    def _fail(self, file: str, frame: int | None, reason: str, found: Found | None = None) -> None:
        self._num_failed += 1
        name = file if frame is None else f"{file}#{frame}"
        complain(PROG, f"{name}: {reason}")
        if self._lines:
            self._lines.write(file, frame, found, reason)

    def _sum_up(self) -> None:
        total = self._num_answered + self._num_earlier + self._num_failed
        if total > 1 and (self._num_earlier or self._num_failed):
            earlier = f", {self._num_earlier} answered by an earlier run" if self._num_earlier else ""
            complain(PROG, f"{self._num_answered} answered{earlier}, {self._num_failed} failed")


if __name__ == "__main__":
    sys.exit(main())
