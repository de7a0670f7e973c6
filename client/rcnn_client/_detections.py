"""What a detector answers for one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import supervision

SHOWN = 3  # how many detections a repr shows


class Detection(NamedTuple):
    """One detected object.

    Attributes:
        class_name: the name of its class.
        score: 0 to 1.
        box: x1, y1, x2, y2 in pixels of the picture.
        label: the number of its class, from 1.
    """

    class_name: str
    score: float
    box: tuple[float, float, float, float]
    label: int


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects found in one picture, n of them, best score first; n = 0 is a normal answer.

    Works as a sequence of `Detection`: `len(detections)`, `detections[0]`, `for detection in detections`. A
    slice, and an array of positions or of n booleans, select several: `detections[:5]` and
    `detections[detections.scores > 0.8]` are `Detections` again, with arrays of their own.

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

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Detection: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> Detections: ...

    def __getitem__(self, index: Any) -> Detection | Detections:
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return next(iter(self[rows : rows + 1]))
        if rows.ndim != 1:
            raise IndexError(f"the index selects rows of shape {rows.shape}, expected one dimension")
        names = [self.class_names[row] for row in rows]
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows], names)

    def __repr__(self) -> str:
        shown = [
            f"{each.class_name} {each.score:.2f} at {','.join(f'{edge:.0f}' for edge in each.box)}"
            for each in self[:SHOWN]
        ]
        if len(self) > SHOWN:
            shown.append(f"and {len(self) - SHOWN} more")
        count = f"{len(self)} detection{'' if len(self) == 1 else 's'}"
        return f"<{count}{': ' * bool(shown)}{'; '.join(shown)}>"

    def to_supervision(self) -> supervision.Detections:
        """The detections for the package supervision: its annotators, trackers, zones and metrics.

        Labels become `class_id`, and class names `data["class_name"]`.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        try:
            from supervision import Detections as SupervisionDetections
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"to_supervision needs {error.name}, which is not installed: pip install supervision",
                name=error.name,
            ) from error
        return SupervisionDetections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.class_names, dtype=str)},
        )
