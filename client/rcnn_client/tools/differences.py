"""How much two models' boxes for a picture differ, and a drawing of both side by side.

n, m: number of detections of the first and of the second model. Boxes are x1, y1, x2, y2 in pixels of the picture.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask

from .. import Detections, draw_detections
from .._orientation import upright

SHOWN_SCORE = 0.5  # boxes with a lower score are neither drawn nor counted
SAME_OBJECT_IOU = 0.5
PANEL_SIDE = 640  # smaller pictures are enlarged until their long side has this many pixels
GAP = 8


@dataclass(frozen=True)
class Difference:
    """How two answers for a picture differ; counts the boxes with a score of 0.5 or more from either model.

    Attributes:
        total: sum of 1 - IoU of each box with the other model's box; a box without a counterpart adds 1.
        only_first, only_second: how many boxes have no counterpart.
        largest_shift_px: the largest distance between the same edges of two counterparts.
    """

    total: float
    only_first: int
    only_second: int
    largest_shift_px: float

    def __str__(self) -> str:
        return (
            f"difference {self.total:.2f}: {self.only_first} only in the first, {self.only_second} only in "
            f"the second, edges moved by up to {self.largest_shift_px:.1f} px"
        )


def difference(first: Detections, second: Detections) -> Difference:
    """Compare two answers for one picture.

    Counterparts have the same class and an IoU of 0.5 or more; pairs with a higher IoU are formed first. A
    counterpart may have a score below 0.5.
    """
    ious = _class_ious(first, second)  # [n, m]
    shown_first, shown_second = first.scores >= SHOWN_SCORE, second.scores >= SHOWN_SCORE
    free_first, free_second = np.ones(len(first), bool), np.ones(len(second), bool)
    total = largest_shift = 0.0
    for flat in np.argsort(-ious, axis=None, kind="stable"):
        row, column = divmod(int(flat), len(second))
        if ious[row, column] < SAME_OBJECT_IOU:
            break
        if free_first[row] and free_second[column]:
            free_first[row] = free_second[column] = False
            if shown_first[row] or shown_second[column]:
                total += 1 - float(ious[row, column])
                shift = np.abs(first.boxes[row] - second.boxes[column]).max()
                largest_shift = max(largest_shift, float(shift))
    only_first, only_second = int((free_first & shown_first).sum()), int((free_second & shown_second).sum())
    return Difference(total + only_first + only_second, only_first, only_second, largest_shift)


def _class_ious(first: Detections, second: Detections) -> np.ndarray:
    """IoU of each first box with each second box, 0 if their class names differ; float64 [n, m]."""
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    sides = [
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
        for boxes in (first.boxes, second.boxes)
    ]  # [., 4]: left, top, width, height
    ious = np.asarray(mask.iou(*sides, [0] * len(second)))
    same_class = np.array(first.class_names)[:, None] == np.array(second.class_names)[None]
    return np.where(same_class, ious, 0.0)


def draw_side_by_side(image: Image.Image, panels: list[tuple[str, Detections]], caption: str) -> Image.Image:
    """Draw each model's boxes on a copy of the picture, side by side under their titles.

    Args:
        image: the picture that was sent; its EXIF orientation is applied.
        panels: title and detections of each model; those with a score below 0.5 are left out.
        caption: line under the picture.
    """
    picture = upright(image).convert("RGB")
    scale = max(1.0, PANEL_SIDE / max(picture.size))
    enlarged = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    width = len(panels) * (enlarged.width + GAP) + GAP
    font_size = max(13, round(min(enlarged.size) / 36))
    line = round(font_size * 1.8)
    canvas = Image.new("RGB", (width, enlarged.height + 2 * line), "white")
    draw = ImageDraw.Draw(canvas)
    for position, (title, detections) in enumerate(panels):
        left = GAP + position * (enlarged.width + GAP)
        canvas.paste(draw_detections(enlarged, _shown(detections, scale)), (left, line))
        _write(draw, title, (left, line / 2), enlarged.width, font_size)
    _write(draw, caption, (GAP, canvas.height - line / 2), width - 2 * GAP, font_size)
    return canvas


def _shown(detections: Detections, scale: float) -> Detections:
    shown = detections[detections.scores >= SHOWN_SCORE]
    points = shown.keypoints
    if points is not None:
        points = points * np.array((scale, scale, 1), np.float32)
    return dataclasses.replace(shown, boxes=shown.boxes * np.float32(scale), keypoints=points)


def _write(
    draw: ImageDraw.ImageDraw, text: str, left_middle: tuple[float, float], width: float, font_size: int
) -> None:
    """Write a line of text, in a font small enough to fit."""
    font = ImageFont.load_default(font_size)
    while font.getlength(text) > width and font_size > 7:
        font_size -= 1
        font = ImageFont.load_default(font_size)
    draw.text(left_middle, text, "black", font, anchor="lm")
