"""What a judgement of a stage says, and the bounds it is made by."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rcnn_export.explaining import Mismatch
from rcnn_export.matching import Float

# Of an array's largest magnitude in the image: what FP32 sums of thousands of terms, added in
# another order, may differ by.
ARRAY_BOUND = 1e-5
# Boxes and scores: far below what an eye or a mAP sees.
BOX_BOUND_PX = 0.05
SCORE_BOUND = 1e-4
# Of a box's longer side before clipping: a box's side is exp(delta) times its anchor's, so a
# delta within ARRAY_BOUND moves the edges of a box of tens of thousands of pixels by more
# than BOX_BOUND_PX. Below 5000 pixels BOX_BOUND_PX holds.
BOX_BOUND_OF_SIDE = 1e-5


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

    differences: dict[str, Difference] = field(default_factory=dict)
    matched: int = 0
    rows: int = 0  # of the side that has more
    explained: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether all is within its bounds or explained."""
        return not self.unexplained and all(difference.worst <= 1 for difference in self.differences.values())

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


def box_bounds_px(boxes: Float) -> npt.NDArray[np.floating]:
    """How far the edges of unclipped boxes [..., 4] may be off: [...]."""
    longer_side = (boxes[..., 2:] - boxes[..., :2]).max(axis=-1)
    bounds: npt.NDArray[np.floating] = np.maximum(BOX_BOUND_PX, BOX_BOUND_OF_SIDE * longer_side)
    return bounds
