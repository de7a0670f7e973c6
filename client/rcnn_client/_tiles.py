"""A large picture as overlapping tiles: how it is cut, and how the detections in the tiles become one answer.

H, W: height and width of the picture in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np

from ._detections import Detections
from ._errors import InvalidParameterError
from ._images import ImageInput, decode_pixels
from ._masks import MaskCrop
from ._merge import MergeMethod, MergeMetric, Merging, group_by_object, merge_boxes, unite_masks
from ._outlines import encode_rle

LOW_SCORE = 0.1  # SAHI's LOW_MODEL_CONFIDENCE: below it, merging many weak detections makes boxes too large


class Tile(NamedTuple):
    """A part of a picture, or the whole of it.

    Attributes:
        image: the picture to send.
        name: its name in errors.
        left, top: position of its first pixel in the picture.
    """

    image: ImageInput
    name: str
    left: int = 0
    top: int = 0


@dataclass(frozen=True)
class Tiling:
    """How `detect_tiled` cuts a picture and merges its detections; see the arguments of `detect_tiled`.

    Raises:
        InvalidParameterError: one of them is outside its range.
    """

    tile_hw: Sequence[int]
    overlap: float
    whole: bool
    merge: MergeMethod | None
    merge_metric: MergeMetric | None
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
            if (value := getattr(self, name)) not in (None, *get_args(kind)):
                raise InvalidParameterError(
                    f"{name} is {value!r}, expected one of: {', '.join(get_args(kind))}"
                )
        if not (_is_number(self.merge_thresh) and 0 < self.merge_thresh <= 1):
            raise InvalidParameterError(
                f"merge_thresh is {self.merge_thresh!r}, expected a number above 0, at most 1"
            )

    def merging(self, score_thresh: float | None, has_keypoints: bool) -> Merging:
        """How to merge; if `merge` and `merge_metric` are None, as SAHI chooses.

        Raises:
            InvalidParameterError: `merge` cannot be used for keypoints.
        """
        is_low = score_thresh is None or score_thresh < LOW_SCORE
        method = self.merge or ("nms" if is_low or has_keypoints else "greedy_nmm")
        if has_keypoints and method != "nms":
            raise InvalidParameterError(
                f'merge is "{method}", but the model returns keypoints, and those of two detections cannot be '
                'merged; give merge="nms", which keeps the better detection'
            )
        metric = self.merge_metric or ("iou" if is_low and self.merge is None else "ios")
        return Merging(method, metric, self.merge_thresh)

    def cut(self, image: ImageInput, name: str, merging: Merging) -> TiledPicture:
        """Decode a picture that `detect` takes, and cut it; raises as `decode_pixels`."""
        pixels = decode_pixels(image)
        boxes = tile_boxes(pixels.shape[:2], self.tile_hw, self.overlap)
        if len(boxes) == 1:
            tiles = [Tile(image, name)]
        else:
            tiles = [
                Tile(pixels[top:bottom, left:right], f"{name}: tile at x {left}, y {top}", left, top)
                for left, top, right, bottom in boxes
            ]
        has_whole = self.whole and len(boxes) > 1
        if has_whole:  # sent first, as it takes the longest
            tiles.insert(
                0, Tile(image, f"{name}: the whole picture (whole=False or --no-whole leaves it out)")
            )
        return TiledPicture(tiles, has_whole, (pixels.shape[0], pixels.shape[1]), merging)


@dataclass(frozen=True)
class TiledPicture:
    """A picture that was cut: its tiles, of which the first is the whole picture if it `has_whole`."""

    tiles: list[Tile]
    has_whole: bool
    size_hw: tuple[int, int]
    merging: Merging

    def merge(self, found: list[Detections]) -> Detections:
        """The detections in all tiles, in the order of `tiles` -> those in the picture.

        Masks become run-length codes of the picture. The masks of merged detections are united; their score and
        keypoints are those of the best one.
        """
        tiles = self.tiles
        if self.has_whole:  # its detections come last, as in SAHI
            tiles, found = [*tiles[1:], tiles[0]], [*found[1:], found[0]]
        together = _in_picture(tiles, found)
        groups = group_by_object(together.boxes, together.scores, together.labels, self.merging)
        merged = together[np.array([members[0] for members in groups], np.int64)]
        places = [(number, row) for number, each in enumerate(found) for row in range(len(each))]
        rles: list[str] | None = [] if found[0].has_masks else None
        for row, members in enumerate(groups):
            merged.boxes[row], kept = merge_boxes(together.boxes, members, self.merging)
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
