"""Mirrors a picture and its objects from left to right; a left keypoint becomes a right one.

Shapes: D objects, P keypoints for each.
"""

import re

import torch
from torch import Tensor

from rcnn_export.errors import ExportError

# left_eye, lefteye, eyeLeft; and the letter as a separate word: l_eye, eye-L, LEye
_SIDE = re.compile(r"(?i:left|right)|(?<![a-zA-Z])[lr](?![a-zA-Z])|(?<![A-Z])[LR](?![a-z])")
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}


def counterparts(names: list[str]) -> list[int]:
    """For each of P keypoints, the position of the keypoint that it becomes in a mirrored picture, by their names.

    ``left_eye`` becomes ``right_eye``, and a keypoint without a side does not change.

    Raises:
        ExportError: a keypoint of one side has no counterpart, or the names of the keypoints are numbers.
    """
    if len(names) > 1 and all(name.isdecimal() for name in names):
        raise ExportError(
            "--horizontal-flip must know which keypoints are left and right, and these have no names: list names under "
            "keypoints in the categories of the annotations, or leave out --horizontal-flip"
        )
    position_of = {name: position for position, name in enumerate(names)}
    places = []
    for name in names:
        other = _SIDE.sub(_other_side, name)
        if other not in position_of:
            raise ExportError(
                f"--horizontal-flip turns {name!r} into {other!r}, and no keypoint has that name: give both names that "
                "differ only in left and right, or leave out --horizontal-flip"
            )
        places.append(position_of[other])
    return places


def describe_mirroring(names: list[str]) -> str:
    """A line that says which keypoints are swapped; raises the errors of ``counterparts``."""
    pairs = [
        f"{names[one]} and {names[other]}" for one, other in enumerate(counterparts(names)) if one < other
    ]
    return f"mirrored pictures: {', '.join(pairs) or 'no keypoints'} change places"


def mirrored(
    picture: Tensor, objects: dict[str, Tensor], places: list[int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """A picture [3, H, W] and its objects, with left and right exchanged.

    Args:
        objects: ``boxes`` [D, 4], left, top, right, bottom in pixels; ``masks`` [D, H, W] and ``keypoints`` [D, P, 3],
            if there are any; anything else is unchanged.
        places: ``counterparts`` of the keypoints.
    """
    left, top, right, bottom = objects["boxes"].unbind(1)
    width = picture.shape[2]
    changed = {**objects, "boxes": torch.stack((width - right, top, width - left, bottom), dim=1)}
    if "masks" in objects:
        changed["masks"] = objects["masks"].flip(2)
    if "keypoints" in objects:
        x, y, visibility = objects["keypoints"][:, places].unbind(2)
        changed["keypoints"] = torch.stack((width - x, y, visibility), dim=2)
    return picture.flip(2), changed


def _other_side(match: re.Match[str]) -> str:
    word = match[0]
    other = _OTHER[word.lower()]
    return other.upper() if word.isupper() else other.capitalize() if word.istitle() else other
