"""What a detector answers for one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ._masks import MaskCrop, paste_crops
from ._outlines import encode_rle, trace_polygons
from ._run_lengths import decode_rle

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

    A Mask R-CNN also returns masks, and a Keypoint R-CNN P keypoints per object. Those attributes are None
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
            box. The methods `masks`, `mask_crops`, `rle` and `polygons` paste them into the picture. None if the
            server pasted them (`detect(..., masks="rle")`).
        image_size_hw: height and width of the upright picture in pixels, if there are masks.
        keypoints: float32 [n, P, 3], x and y in pixels of the upright picture, and visibility, which is 1.
        keypoint_scores: float32 [n, P], the highest value of each keypoint's heatmap: a logit of any size.
        keypoint_names: P names.
        mask_thresh: pixels whose probability is above this belong to an object; the value that `detect` used.
        rles: n strings, the run-length codes of the masks that the server pasted; the same methods read them.
        track_ids: int64 [n], from 1, the number that each object keeps in its video, if a `Tracker` assigned them.
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
    mask_thresh: float = 0.5
    rles: list[str] | None = None
    track_ids: NDArray[np.int64] | None = None

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
            self.mask_thresh,
            None if self.rles is None else [self.rles[row] for row in rows],
            select(self.track_ids),
        )

    def __repr__(self) -> str:
        shown = [
            f"{title} {each.score:.2f} at {','.join(f'{edge:.0f}' for edge in each.box)}"
            for title, each in zip(self.titles(), self[:SHOWN], strict=False)
        ]
        if len(self) > SHOWN:
            shown.append(f"and {len(self) - SHOWN} more")
        count = f"{len(self)} detection{'' if len(self) == 1 else 's'}"
        return f"<{count}{': ' * bool(shown)}{'; '.join(shown)}>"

    def titles(self) -> list[str]:
        """What each detection is called: its class name, and its id if it is tracked, such as "dog #3"."""
        if self.track_ids is None:
            return list(self.class_names)
        columns = zip(self.class_names, self.track_ids.tolist(), strict=True)
        return [f"{name} #{track_id}" for name, track_id in columns]

    @property
    def has_masks(self) -> bool:
        """Whether there are masks, as probabilities or as run-length codes."""
        return self.mask_probabilities is not None or self.rles is not None

    def masks(self, mask_thresh: float | None = None) -> NDArray[np.bool_]:
        """The masks, pasted into the picture as by torchvision's `paste_masks_in_image` and compared with the threshold.

        Each call pastes again. The array has n bytes for each pixel of the picture; `mask_crops`, `rle` and
        `polygons` do not create it.

        Args:
            mask_thresh: pixels whose probability is above this (0 to 1) belong to the object; None means the
                attribute `mask_thresh`, which is the only possible value if the server pasted the masks.

        Returns:
            bool [n, height, width].

        Raises:
            ValueError: there are no masks, `mask_thresh` is outside its range, or the server pasted the masks with
                another one.
        """
        crops = self.mask_crops(mask_thresh)
        pasted = np.zeros((len(self), *self._size_hw()), np.bool_)
        for full, (mask, top, left) in zip(pasted, crops, strict=True):
            full[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        return pasted

    def mask_crops(self, mask_thresh: float | None = None) -> Iterator[MaskCrop]:
        """The same masks one at a time, each as the part of the picture that it may cover.

        >>> for mask, top, left in detections.mask_crops():
        ...     photo[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = 255

        Raises:
            ValueError: as `masks`.
        """
        size_hw, thresh = self._size_hw(), self._thresh(mask_thresh)
        if self.mask_probabilities is not None:
            return paste_crops(self.mask_probabilities, self.boxes, size_hw, thresh)
        return (decode_rle(counts, size_hw) for counts in self._server_rles(thresh))

    def rle(self, mask_thresh: float | None = None) -> list[dict[str, Any]]:
        """The same masks as COCO's compressed run-length codes, for JSON and pycocotools; raises as `masks`.

        Returns:
            n dicts of `size`, [height, width], and `counts`, a string.
        """
        size_hw, thresh = self._size_hw(), self._thresh(mask_thresh)
        if self.mask_probabilities is not None:
            return [encode_rle(crop, size_hw) for crop in self.mask_crops(thresh)]
        return [{"size": list(size_hw), "counts": counts} for counts in self._server_rles(thresh)]

    def polygons(self, mask_thresh: float | None = None) -> list[list[NDArray[np.float32]]]:
        """The outlines of the same masks, along the edges of their pixels; raises as `masks`.

        Returns:
            for each detection a list of outlines, one for each part of the mask. An outline is float32
                [corners, 2], x and y in pixels of the picture. Holes are left out.
        """
        return [trace_polygons(crop) for crop in self.mask_crops(mask_thresh)]

    def _size_hw(self) -> tuple[int, int]:
        if not self.has_masks or self.image_size_hw is None:
            raise ValueError(
                "the detections have no masks; detect with a Mask R-CNN, such as mask_rcnn, and without "
                'masks="none"'
            )
        return self.image_size_hw

    def _thresh(self, mask_thresh: float | None) -> float:
        thresh = self.mask_thresh if mask_thresh is None else mask_thresh
        if not 0 <= thresh <= 1:
            raise ValueError(f"mask_thresh is {thresh!r}, expected a number from 0 to 1")
        return thresh

    def _server_rles(self, thresh: float) -> list[str]:
        """The codes that the server made; they are for one threshold only."""
        if thresh != self.mask_thresh:
            raise ValueError(
                f"mask_thresh is {thresh!r}, but the server pasted the masks at {self.mask_thresh!r}; pass it to "
                'detect, or detect with masks="probabilities"'
            )
        assert self.rles is not None
        return self.rles

    def to_supervision(self) -> supervision.Detections:
        """The detections for the package supervision: its annotators, trackers, zones and metrics.

        Labels become `class_id`, class names `data["class_name"]`, masks `mask`, and `track_ids` `tracker_id`.

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
            mask=self.masks() if self.has_masks else None,
            tracker_id=self.track_ids,
            data={"class_name": np.array(self.class_names, dtype=str)},
        )
