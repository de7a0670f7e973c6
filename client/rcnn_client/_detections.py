"""What a detector answers for one picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Detection(NamedTuple):
    """One detected object; `box` is x1, y1, x2, y2 in pixels of the picture."""

    class_name: str
    score: float
    box: tuple[float, float, float, float]
    label: int


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one picture, n of them, best score first; n = 0 is a normal answer.

    Attributes:
        boxes: float32 [n, 4], x1, y1, x2, y2 in pixels of the picture as sent, upright (after its EXIF
            orientation), x2 > x1, y2 > y1.
        scores: float32 [n], 0 to 1.
        labels: int64 [n], 1 to the number of classes; 0 is the background, which is never detected.
        class_names: n names, one per detection.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        columns = self.class_names, self.scores.tolist(), self.boxes.tolist(), self.labels.tolist()
        for class_name, score, box, label in zip(*columns, strict=True):
            yield Detection(class_name, score, tuple(box), label)
