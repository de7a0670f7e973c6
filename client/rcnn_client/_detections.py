"""What a detector answers for one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ._masks import MaskCrop, paste_crops
from ._outlines import encode_rle, trace_polygons

if TYPE_CHECKING:
    import supervision

SHOWN = 3  # how many detections a repr shows
T = TypeVar("T", bound=np.generic)


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

    A Mask R-CNN also answers masks, and a Keypoint R-CNN keypoints, P per object. Those attributes are None
    where the model has no such output.

    Works as a sequence of `Detection`: `len(detections)`, `detections[0]`, `for detection in detections`. A
    slice, and an array of positions or of n booleans, select several: `detections[:5]` and
    `detections[detections.scores > 0.8]` are `Detections` again, with arrays of their own.

    Attributes:
        boxes: float32 [n, 4], x1, y1, x2, y2 in pixels of the picture as sent, upright (after its EXIF
            orientation), x2 > x1, y2 > y1.
        scores: float32 [n], 0 to 1.
        labels: int64 [n], 1 to the number of classes; 0 is the background, which is never detected.
        class_names: n names, one per detection.
        mask_probabilities: float16 [n, 28, 28], the probability of each detection's class in the frame of its
            box. The methods `masks`, `mask_crops`, `rle` and `polygons` paste them into the picture.
        image_size_hw: height and width of the upright picture in pixels, where there are masks.
        keypoints: float32 [n, P, 3], x and y in pixels of the upright picture, and visibility, which is 1.
        keypoint_scores: float32 [n, P], the highest value of each keypoint's heatmap: a logit of any size.
        keypoint_names: P names.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: list[str]
    mask_probabilities: NDArray[np.float16] | None = None
    image_size_hw: tuple[int, int] | None = None
    keypoints: NDArray[np.float32] | None = None
    keypoint_scores: NDArray[np.float32] | None = None
    keypoint_names: list[str] | None = None

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

        def select(column: NDArray[T] | None) -> NDArray[T] | None:
            return None if column is None else column[rows]

        return Detections(
            self.boxes[rows],
            self.scores[rows],
            self.labels[rows],
            [self.class_names[row] for row in rows],
            select(self.mask_probabilities),
            self.image_size_hw,
            select(self.keypoints),
            select(self.keypoint_scores),
            self.keypoint_names,
        )

    def __repr__(self) -> str:
        shown = [
            f"{each.class_name} {each.score:.2f} at {','.join(f'{edge:.0f}' for edge in each.box)}"
            for each in self[:SHOWN]
        ]
        if len(self) > SHOWN:
            shown.append(f"and {len(self) - SHOWN} more")
        count = f"{len(self)} detection{'' if len(self) == 1 else 's'}"
        return f"<{count}{': ' * bool(shown)}{'; '.join(shown)}>"

    def masks(self, mask_thresh: float = 0.5) -> NDArray[np.bool_]:
        """The masks pasted into the picture, as torchvision's `paste_masks_in_image` and the threshold.

        Each call pastes again. The array has n bytes for each pixel of the picture; `mask_crops`, `rle` and
        `polygons` do without it.

        Args:
            mask_thresh: pixels whose probability is above this (0 to 1) belong to the object.

        Returns:
            bool [n, height, width].

        Raises:
            ValueError: there are no masks, or `mask_thresh` is outside its range.
        """
        crops = self.mask_crops(mask_thresh)
        pasted = np.zeros((len(self), *self._size_hw()), np.bool_)
        for full, (mask, top, left) in zip(pasted, crops, strict=True):
            full[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        return pasted

    def mask_crops(self, mask_thresh: float = 0.5) -> Iterator[MaskCrop]:
        """The same masks one at a time, each as the part of the picture that it may cover; raises as `masks`.

        >>> for mask, top, left in detections.mask_crops():
        ...     photo[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = 255
        """
        size_hw = self._size_hw()
        if not 0 <= mask_thresh <= 1:
            raise ValueError(f"mask_thresh is {mask_thresh!r}, expected a number from 0 to 1")
        assert self.mask_probabilities is not None
        return paste_crops(self.mask_probabilities, self.boxes, size_hw, mask_thresh)

    def rle(self, mask_thresh: float = 0.5) -> list[dict[str, Any]]:
        """The same masks as COCO's compressed run-length codes, for JSON and pycocotools; raises as `masks`.

        Returns:
            n dicts of `size`, [height, width], and `counts`, a string.
        """
        return [encode_rle(crop, self._size_hw()) for crop in self.mask_crops(mask_thresh)]

    def polygons(self, mask_thresh: float = 0.5) -> list[list[NDArray[np.float32]]]:
        """The outlines of the same masks, along the edges of their pixels; raises as `masks`.

        Returns:
            for each detection its outlines, one for each part of the mask, none if the mask is empty. An outline
            is float32 [corners, 2], x and y in pixels of the picture. Holes are left out.
        """
        return [trace_polygons(crop) for crop in self.mask_crops(mask_thresh)]

    def _size_hw(self) -> tuple[int, int]:
        if self.mask_probabilities is None or self.image_size_hw is None:
            raise ValueError("the detections have no masks; detect with a Mask R-CNN, such as mask_rcnn")
        return self.image_size_hw

    def to_supervision(self) -> supervision.Detections:
        """The detections for the package supervision: its annotators, trackers, zones and metrics.

        Labels become `class_id`, class names `data["class_name"]`, and masks `mask`.

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
            mask=None if self.mask_probabilities is None else self.masks(),
            data={"class_name": np.array(self.class_names, dtype=str)},
        )
