"""A large picture as overlapping tiles: how it is cut, and how what is found in them becomes one answer.

H, W: height and width of the picture in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._contract import Contract
from ._detections import Detections
from ._errors import InvalidParameterError
from ._images import ImageInput, open_image, rgb_pixels
from ._masks import MaskCrop
from ._merge import MergeMethod, MergeMetric, group_by_object, merge_boxes, unite_masks
from ._orientation import upright
from ._outlines import encode_rle


class Tile(NamedTuple):
    """A part of a picture, or the whole of it.

    Attributes:
        image: what is sent.
        name: what errors call it.
        left, top: where its first pixel lies in the picture.
    """

    image: ImageInput
    name: str
    left: int = 0
    top: int = 0


@dataclass(frozen=True)
class Tiling:
    """How `detect_tiled` cuts a picture and merges its detections: its arguments, see there.

    Raises:
        InvalidParameterError: one of them is outside its range.
    """

    tile_hw: Sequence[int]
    overlap: float
    whole: bool
    merge: MergeMethod
    merge_metric: MergeMetric
    merge_thresh: float

    def __post_init__(self) -> None:
        sides = self.tile_hw if isinstance(self.tile_hw, Sequence) else ()
        if len(sides) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in sides):
            raise InvalidParameterError(
                f"tile_hw is {self.tile_hw!r}, expected height and width in pixels, for example (800, 800)"
            )
        if not (_is_number(self.overlap) and 0 <= self.overlap < 1):
            raise InvalidParameterError(
                f"overlap is {self.overlap!r}, expected a share of the tile from 0 to less than 1, for example 0.2"
            )
        for name, kind in (("merge", MergeMethod), ("merge_metric", MergeMetric)):
            if (value := getattr(self, name)) not in get_args(kind):
                raise InvalidParameterError(
                    f"{name} is {value!r}, expected one of: {', '.join(get_args(kind))}"
                )
        if not (_is_number(self.merge_thresh) and 0 < self.merge_thresh <= 1):
            raise InvalidParameterError(
                f"merge_thresh is {self.merge_thresh!r}, expected a number above 0, at most 1"
            )

    def check_model(self, contract: Contract) -> None:
        """Raises InvalidParameterError if what the model answers cannot be merged."""
        if contract.keypoint_names is not None and self.merge != "nms":
            raise InvalidParameterError(
                f'merge is "{self.merge}", but the model answers keypoints, and those of two detections cannot be '
                'merged; give merge="nms", which keeps the better detection'
            )

    def cut(self, image: ImageInput, name: str) -> TiledPicture:
        """Decode a picture that `detect` takes, and cut it.

        Raises:
            InvalidImageError: it cannot be read or decoded.
        """
        if isinstance(image, np.ndarray):
            picture: NDArray[Any] | Image.Image = rgb_pixels(image)
            size_hw = (image.shape[0], image.shape[1])
        else:
            opened = upright(open_image(image))
            # of other modes the server makes RGB, as it does of the whole picture
            picture = np.asarray(opened) if opened.mode in ("RGB", "L") else opened
            size_hw = (opened.height, opened.width)
        boxes = tile_boxes(size_hw, self.tile_hw, self.overlap)
        tiles = [
            Tile(_crop(picture, box), f"{name}: tile at x {box[0]}, y {box[1]}", box[0], box[1])
            for box in boxes
        ]
        if len(boxes) == 1:
            tiles = [Tile(image, name)]
        elif self.whole:  # the first, as it takes the longest
            tiles = [Tile(image, f"{name}: the whole picture (whole=False leaves it out)"), *tiles]
        return TiledPicture(self, tiles, size_hw)


@dataclass(frozen=True)
class TiledPicture:
    """A picture that was cut."""

    tiling: Tiling
    tiles: list[Tile]
    size_hw: tuple[int, int]

    def merge(self, found: list[Detections]) -> Detections:
        """The detections in all tiles, in the order of `tiles` -> those in the picture.

        Masks become run-length codes of the picture. Of merged detections they are united; the score and the
        keypoints are those of the best.
        """
        tiling, tiles = self.tiling, self.tiles
        if tiling.whole:  # counts as the last, as in SAHI
            tiles, found = [*tiles[1:], tiles[0]], [*found[1:], found[0]]
        places = [(number, row) for number, detections in enumerate(found) for row in range(len(detections))]
        together = _in_picture(tiles, found)
        groups = group_by_object(
            together.boxes,
            together.scores,
            together.labels,
            tiling.merge,
            tiling.merge_metric,
            tiling.merge_thresh,
        )
        merged = together[np.array([members[0] for members in groups], np.int64)]
        rles: list[str] | None = [] if found[0].has_masks else None
        for object_row, members in enumerate(groups):
            box, kept = merge_boxes(together.boxes, members, tiling.merge_metric, tiling.merge_thresh)
            merged.boxes[object_row] = box
            if rles is not None:
                masks = [_mask_in_picture(tiles, found, *places[member]) for member in kept]
                rles.append(encode_rle(unite_masks(masks), self.size_hw)["counts"])
        if rles is None:
            return merged
        return dataclasses.replace(merged, rles=rles, image_size_hw=self.size_hw)


def tile_boxes(
    size_hw: Sequence[int], tile_hw: Sequence[int], overlap: float
) -> list[tuple[int, int, int, int]]:
    """The boxes of the tiles, left, top, right, bottom, in reading order, as SAHI's `get_slice_bboxes`.

    A side of the picture that is shorter than the tile has one tile of its length. Otherwise every tile has the
    full size, so that the last ones overlap by more.
    """
    (height, width), (tile_height, tile_width) = size_hw, tile_hw
    return [
        (left, top, min(left + tile_width, width), min(top + tile_height, height))
        for top in _starts(height, tile_height, overlap)
        for left in _starts(width, tile_width, overlap)
    ]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """The first pixels of the tiles along one side."""
    last = max(length - tile, 0)
    return [*range(0, last, tile - int(overlap * tile)), last]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _crop(picture: NDArray[Any] | Image.Image, box: tuple[int, int, int, int]) -> ImageInput:
    if isinstance(picture, Image.Image):
        return picture.crop(box)
    left, top, right, bottom = box
    return picture[top:bottom, left:right]


def _in_picture(tiles: list[Tile], found: list[Detections]) -> Detections:
    """The detections of all tiles, one tile after the other, without masks."""
    offsets = [np.array([tile.left, tile.top]) for tile in tiles]
    boxes = [each.boxes + np.tile(offset, 2) for offset, each in zip(offsets, found, strict=True)]
    keypoints = [
        each.keypoints + np.append(offset, 0)
        for offset, each in zip(offsets, found, strict=True)
        if each.keypoints is not None
    ]
    keypoint_scores = [each.keypoint_scores for each in found if each.keypoint_scores is not None]
    return Detections(
        np.concatenate(boxes).astype(np.float32),
        np.concatenate([each.scores for each in found]),
        np.concatenate([each.labels for each in found]),
        [name for each in found for name in each.class_names],
        None,
        None,
        np.concatenate(keypoints).astype(np.float32) if keypoints else None,
        np.concatenate(keypoint_scores) if keypoint_scores else None,
        found[0].keypoint_names,
        found[0].mask_thresh,
    )


def _mask_in_picture(tiles: list[Tile], found: list[Detections], number: int, row: int) -> MaskCrop:
    """The mask of a detection, by the number of its tile and its row there."""
    ((mask, top, left),) = found[number][row : row + 1].mask_crops()
    return MaskCrop(mask, tiles[number].top + top, tiles[number].left + left)
