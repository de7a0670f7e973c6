"""What a judgement of a stage says, and the bounds it is made by."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rcnn_export.verify.matching import Float
from rcnn_export.verify.ties import Mismatch


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from torchvision's FP32.

    ``array``: of an array's largest magnitude in the image. ``box_of_side``: of a box's longer side
    before clipping, where that is more than ``box_px``: a box's side is exp(delta) times its anchor's,
    so a delta within ``array`` moves the edges of a very large box by more than ``box_px``.
    ``matched_share``: of the detections end to end; what is explained may not become the rule.
    ``explains``: each row that finds no partner needs an explanation; else ``matched_share`` of the rows
    of each stage must find one.
    """

    array: float
    box_px: float
    box_of_side: float
    score: float
    matched_share: float
    explains: bool = True

    def boxes_px(self, boxes: Float) -> npt.NDArray[np.floating]:
        """How far the edges of unclipped boxes [..., 4] may be off: [...]."""
        longer_side = (boxes[..., 2:] - boxes[..., :2]).max(axis=-1)
        bounds: npt.NDArray[np.floating] = np.maximum(self.box_px, self.box_of_side * longer_side)
        return bounds


# FP32: sums of thousands of terms, added in another order; boxes and scores far below what an eye or
# a mAP sees.
FP32_BOUNDS = Bounds(array=1e-5, box_px=0.05, box_of_side=1e-5, score=1e-4, matched_share=0.99)
# FP16, with 11 bits of each number. In ONNX Runtime the sample with its trained weights stays within a fifth
# of these, and each network of torchvision's models with random weights, by itself, within half. End to end their
# nearly tied scores fall on either side of cuts and thresholds, so rows are counted and not explained.
FP16_BOUNDS = Bounds(array=2e-2, box_px=2.0, box_of_side=1e-2, score=0.05, matched_share=0.9, explains=False)


@dataclass
class Difference:
    """How far one quantity of a stage is apart; ``worst`` is in units of the bound, at most 1 holds."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0
    worst: float = 0.0

    def add(self, differences: npt.NDArray[np.floating], bounds: npt.NDArray[np.floating] | float) -> None:
        """Counts in differences, each with its bound; one that is no number is out of bounds."""
        if differences.size:
            largest, worst = float(differences.max()), float((differences / bounds).max())
            self.largest = max(self.largest, math.inf if math.isnan(largest) else largest)
            self.worst = max(self.worst, math.inf if math.isnan(worst) else worst)
            self.total += float(differences.sum(dtype=np.float64))
            self.count += differences.size

    @property
    def mean(self) -> float:
        """Of all that were counted in."""
        return self.total / self.count if self.count else 0.0


@dataclass
class Judgement:
    """One stage over any number of batches."""

    bounds: Bounds = FP32_BOUNDS
    differences: dict[str, Difference] = field(default_factory=dict)
    matched: int = 0
    rows: int = 0  # of the side that has more
    explained: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether all is within its bounds or explained."""
        if any(difference.worst > 1 for difference in self.differences.values()):
            return False
        if self.bounds.explains:
            return not self.unexplained
        return self.matched >= self.bounds.matched_share * self.rows

    def difference(self, quantity: str) -> Difference:
        """The difference of a quantity, e.g. ``px``."""
        return self.differences.setdefault(quantity, Difference())

    def count(self, where: str, mismatches: Sequence[Mismatch], side: str) -> None:
        """Counts in the mismatches of one side."""
        for mismatch in mismatches:
            if mismatch.explained:
                self.explained[mismatch.reason] += 1
            else:
                self.unexplained.append(f"{where}: row {mismatch.row} only in {side}: {mismatch.reason}")
