"""How far a stage is from torchvision: the differences found, and whether they are within bounds."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rcnn_export.engines.precision import FP32, Bounds
from rcnn_export.verify.ties import Mismatch


@dataclass
class Difference:
    """The differences of one quantity of a stage. ``worst`` is the largest in units of its bound; up to 1 is within bounds."""

    largest: float = 0.0
    worst: float = 0.0

    def add(self, differences: npt.NDArray[np.floating], bounds: npt.NDArray[np.floating] | float) -> None:
        """Adds differences, each with its bound. NaN is out of bounds."""
        if differences.size:
            largest, worst = float(differences.max()), float((differences / bounds).max())
            self.largest = max(self.largest, math.inf if math.isnan(largest) else largest)
            self.worst = max(self.worst, math.inf if math.isnan(worst) else worst)


@dataclass
class Comparison:
    """One stage over any number of batches."""

    bounds: Bounds = FP32.bounds
    differences: dict[str, Difference] = field(default_factory=dict)
    matched: int = 0
    rows: int = 0  # the number of rows of the side that has more
    explained: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything is within its bounds or explained."""
        if any(difference.worst > 1 for difference in self.differences.values()):
            return False
        if self.bounds.explains:
            return not self.unexplained
        return self.matched >= self.bounds.matched_share * self.rows

    def difference(self, quantity: str) -> Difference:
        """The difference of a quantity, e.g. ``px``."""
        return self.differences.setdefault(quantity, Difference())

    def count(self, where: str, mismatches: Sequence[Mismatch], side: str) -> None:
        """Adds the mismatches of one side."""
        for mismatch in mismatches:
            if mismatch.explained:
                self.explained[mismatch.reason] += 1
            else:
                self.unexplained.append(f"{where}: row {mismatch.row} only in {side}: {mismatch.reason}")
