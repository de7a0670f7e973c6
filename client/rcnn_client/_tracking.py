"""Numbers the objects of a video, so that each keeps its number from frame to frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ._detections import Detections
from ._errors import InvalidParameterError
from ._merge import overlaps

LOWEST_SCORE = 0.1  # a detection that scores less does not continue a track: ByteTrack's limit
SAME_OBJECT = 0.5  # IoU above which boxes of two classes are one object; torchvision's limit within a class
MATCH_COST = 0.9  # 1 - IoU of a box and its track's predicted box; above it they are two objects


class Tracker:
    """Gives the objects of one video ids that stay the same from frame to frame, by ByteTrack.

    ByteTrack (Zhang et al., ECCV 2022) predicts where each object goes, and matches boxes to the predictions by
    their overlap. Classes do not count: an object that is taken for another class keeps its id, and of two boxes that
    overlap by more than an IoU of 0.5, only the better is kept. A box whose score is too low for a new id can still
    continue a track, so detect with `score_thresh=0.1`:

    >>> tracker = Tracker(score_thresh=0.5)

    >>> for result in detector.detect_stream(frames, score_thresh=0.1):
    ...     print(tracker.update(result.detections).track_ids)

    Args:
        score_thresh: detections that score at least this (0 to 1) get an id; others only if they continue a track.
        lost_frames: an object that is not seen for more frames than this gets a new id.

    Raises:
        InvalidParameterError: an argument is outside its range.
        ModuleNotFoundError: trackforge is not installed.
    """

    def __init__(self, score_thresh: float = 0.5, lost_frames: int = 30) -> None:
        if not 0 <= score_thresh <= 1:
            raise InvalidParameterError(f"score_thresh is {score_thresh!r}, expected a number from 0 to 1")
        if lost_frames < 0:
            raise InvalidParameterError(f"lost_frames is {lost_frames!r}, expected 0 or more")
        try:
            from trackforge import BYTETRACK
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "objects are tracked by trackforge, which is not installed: pip install 'rcnn-client[video]'",
                name=error.name,
            ) from error
        self._lowest = min(LOWEST_SCORE, score_thresh)
        self._tracks = BYTETRACK(score_thresh, lost_frames, MATCH_COST, score_thresh)

    def update(self, detections: Detections) -> Detections:
        """The tracked objects among those of the next frame, with their `track_ids`, best score first.

        Every frame must be given, in order, also frames without detections.
        """
        rows = np.flatnonzero(detections.scores >= self._lowest)
        candidates = detections[rows[_is_best(detections.boxes[rows], detections.scores[rows])]]
        corners = candidates.boxes.astype(float)
        boxes = np.hstack((corners[:, :2], corners[:, 2:] - corners[:, :2]))  # x, y, width, height
        columns = boxes.tolist(), candidates.scores.tolist(), candidates.labels.tolist()
        tracks = self._tracks.update(list(zip(*columns, strict=True)))
        id_of = {row: track_id for track_id, *_, row in tracks if row is not None}
        tracked = sorted(id_of)
        track_ids = np.array([id_of[row] for row in tracked], np.int64)
        return replace(candidates[tracked], track_ids=track_ids)


def _is_best(boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of n boxes NMS over all classes keeps: bool [n]."""
    is_best = np.ones(len(boxes), np.bool_)
    order = np.argsort(-scores, kind="stable")
    for position, row in enumerate(order):
        if is_best[row]:
            others = order[position + 1 :]
            is_best[others[overlaps(boxes[row], boxes[others], "iou") > SAME_OBJECT]] = False
    return is_best
