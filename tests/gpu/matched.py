"""Checks that two answers to a picture have the same objects, whose order may differ if scores are nearly equal."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from rcnn_export.verify.matching import UNMATCHED, Rows, match_rows


class Answer(Protocol):
    """The answer to a picture: boxes [n, 4], scores [n] and labels [n]."""

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    @property
    def mask_probabilities(self) -> npt.NDArray[np.float16] | None:
        """[n, 28, 28] from a Mask R-CNN."""


class Closeness(NamedTuple):
    """How close the objects of two answers must be; those with a score below ``least_score`` need no partner."""

    box_px: float
    score: float
    mask: float
    least_score: float


FP32 = Closeness(box_px=0.1, score=1e-3, mask=5e-3, least_score=0.0)
# Two FP16 batches may be rounded differently, so each may have an object near the threshold that the other lacks.
FP16 = Closeness(box_px=0.5, score=0.02, mask=0.05, least_score=0.3)


def assert_matched(found: Answer, expected: Answer, near: Closeness, what: str) -> None:
    """Checks that each object has a partner in the other answer, with the same label and similar box, score and mask."""
    ours, theirs = (Rows(each.boxes, each.scores, each.labels) for each in (expected, found))
    bounds_px = np.full(len(ours), near.box_px, np.float32)
    matching = match_rows(ours, theirs, bounds_px, near.score)
    for side, rows, partners in (("expected", ours, matching.a_to_b), ("found", theirs, matching.b_to_a)):
        alone = (partners == UNMATCHED) & (rows.scores >= near.least_score)
        assert not alone.any(), (
            f"{what}: only {side}: labels {rows.groups[alone]}, scores {rows.scores[alone]}, boxes {rows.boxes[alone]}"
        )
    in_ours, in_theirs = matching.pairs()
    if expected.mask_probabilities is not None:
        assert found.mask_probabilities is not None, f"{what}: there are no masks"
        masks = (
            answer.mask_probabilities[rows].astype(np.float32)
            for answer, rows in ((expected, in_ours), (found, in_theirs))
            if answer.mask_probabilities is not None
        )
        np.testing.assert_allclose(*masks, rtol=0, atol=near.mask, err_msg=what)
