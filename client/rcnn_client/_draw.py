"""Detections drawn on their picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ._detections import Detection, Detections
from ._draw_shapes import Colour, colours, draw_keypoints, draw_masks
from ._fonts import Font, readable
from ._images import ImageInput, open_image
from ._orientation import upright

Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels; x2 and y2 are exclusive


class _Text(NamedTuple):
    text: str
    font: Font
    origin: tuple[float, float]  # left end of the baseline


class _Label(NamedTuple):
    texts: list[_Text]
    place: Rectangle
    colour: Colour


def draw_detections(image: ImageInput, detections: Detections) -> Image.Image:
    """Draw each detection's box, class name and score, its mask and its keypoints on a copy of the picture.

    Each class has its own colour, or each id if a `Tracker` assigned ids; masks are translucent. COCO's 17 keypoints
    are joined to a skeleton. A keypoint whose visibility is 0 is not drawn. Line width and text size grow with the
    picture. Each label is inside the picture and, if there is room around its box, does not cover the labels of
    better detections.

    Args:
        image: the picture that was sent, as `Detector.detect` takes it; its EXIF orientation is applied.
        detections: what was found in it, in pixels of the upright picture.

    Returns:
        the drawn picture, mode RGB, upright.

    Raises:
        InvalidImageError: the picture cannot be read or decoded.
    """
    canvas = to_rgb(upright(open_image(image)))
    draw = ImageDraw.Draw(canvas)
    short_side = min(canvas.size)
    line_width = max(2, round(short_side / 250))
    font_size = max(11, round(short_side / 32))

    worst_first = detections[np.argsort(-detections.scores, kind="stable")[::-1]]  # the best is drawn on top
    best_first = worst_first[::-1]
    track_ids = best_first.track_ids
    ids = [""] * len(best_first) if track_ids is None else [f" #{track_id}" for track_id in track_ids]
    labels: list[_Label] = []
    for detection, track_id, colour in zip(best_first, ids, colours(best_first), strict=True):
        taken = [label.place for label in labels]
        labels.append(
            _place_label(detection, track_id, colour, canvas.size, font_size, line_width + 1, taken)
        )

    draw_masks(canvas, worst_first, line_width)
    for detection, colour in zip(worst_first, colours(worst_first), strict=True):
        _draw_rectangle(draw, detection.box, outline=colour, width=line_width)
    draw_keypoints(draw, worst_first, line_width)
    for label in reversed(labels):
        _draw_rectangle(draw, label.place, fill=label.colour)
        luma = np.dot(label.colour, (0.299, 0.587, 0.114))  # ITU-R BT.601
        for text, font, origin in label.texts:
            draw.text(origin, text, "black" if luma > 120 else "white", font, anchor="ls")
    return canvas


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in mode RGB."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits: convert() would clip them at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _draw_rectangle(
    draw: ImageDraw.ImageDraw,
    rectangle: Rectangle,
    *,
    fill: Colour | None = None,
    outline: Colour | None = None,
    width: int = 1,
) -> None:
    x1, y1, x2, y2 = rectangle  # ImageDraw's right and bottom edges are inclusive
    draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), fill=fill, outline=outline, width=width)


def _place_label(
    detection: Detection,
    track_id: str,
    colour: Colour,
    canvas_size: tuple[int, int],
    font_size: int,
    padding: int,
    taken: list[Rectangle],
) -> _Label:
    name, name_font = readable(detection.class_name, detection.label, font_size)
    score, score_font = f"{track_id} {detection.score:.2f}", ImageFont.load_default(font_size)
    while (
        font_size > 7
        and name_font.getlength(name) + score_font.getlength(score) + 2 * padding > canvas_size[0]
    ):
        font_size -= 1
        name, name_font = readable(detection.class_name, detection.label, font_size)
        score_font = ImageFont.load_default(font_size)
    name_width = name_font.getlength(name)
    left, *_ = name_font.getbbox(name, anchor="ls")
    # the same height for every label, unless its letters are taller
    boxes = [score_font.getbbox("Hg", anchor="ls"), name_font.getbbox(name, anchor="ls")]
    top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
    right = name_width + score_font.getbbox(score, anchor="ls")[2]
    size = (right - left + 2 * padding, bottom - top + 2 * padding)
    place = _free_place(detection.box, size, canvas_size, taken)
    x, baseline = place[0] + padding - left, place[1] + padding - top
    texts = [_Text(name, name_font, (x, baseline)), _Text(score, score_font, (x + name_width, baseline))]
    return _Label(texts, place, colour)


def _free_place(
    box: Rectangle, size: tuple[float, float], canvas_size: tuple[int, int], taken: list[Rectangle]
) -> Rectangle:
    """Place for a label of that width and height: at the box, inside the picture and, if possible, on no other label."""
    x1, y1, x2, y2 = box
    width, height = size
    right, above = x2 - width, y1 - height
    places = []
    for x, y in ((x1, above), (right, above), (x1, y1), (x1, y2), (right, y2), (x1, y2 - height)):
        x = max(0, min(round(x), canvas_size[0] - width))
        y = max(0, min(round(y), canvas_size[1] - height))
        places.append((x, y, x + width, y + height))
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    return next(free, places[0])


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
