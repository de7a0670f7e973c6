"""Masks and keypoints drawn on a picture."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw

from ._contract import COCO_KEYPOINTS
from ._detections import Detections
from ._outlines import trace_polygons

Colour = tuple[int, int, int]

OPACITY = 110  # of a mask, out of 255
LEFT, RIGHT, MIDDLE = (64, 156, 255), (255, 140, 26), (60, 210, 110)  # sides of a body

# COCO's skeleton, as in the category "person" of its annotations.
LIMBS = [
    ("left_ankle", "left_knee"),
    ("left_knee", "left_hip"),
    ("right_ankle", "right_knee"),
    ("right_knee", "right_hip"),
    ("left_hip", "right_hip"),
    ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"),
    ("left_shoulder", "right_shoulder"),
    ("left_shoulder", "left_elbow"),
    ("right_shoulder", "right_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_elbow", "right_wrist"),
    ("left_eye", "right_eye"),
    ("nose", "left_eye"),
    ("nose", "right_eye"),
    ("left_eye", "left_ear"),
    ("right_eye", "right_ear"),
    ("left_ear", "left_shoulder"),
    ("right_ear", "right_shoulder"),
]


def class_colour(label: int) -> Colour:
    """Colour of a class, or of a track; the hues of neighbouring numbers are far apart (golden section of the colour circle)."""
    hue = label * 0.618034 % 1
    saturation, value = ((0.85, 1.0), (0.55, 1.0), (0.9, 0.7))[label // 12 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def colours(detections: Detections) -> list[Colour]:
    """The colour of each detection: that of its class, or of its id if it is tracked."""
    numbers = detections.labels if detections.track_ids is None else detections.track_ids
    return [class_colour(number) for number in numbers.tolist()]


def draw_masks(canvas: Image.Image, detections: Detections, line_width: int) -> None:
    """Draw each mask, translucent and with its outline, in the colour of its detection; the last is on top."""
    if not detections.has_masks:
        return
    draw = ImageDraw.Draw(canvas)
    for colour, crop in zip(colours(detections), detections.mask_crops(), strict=True):
        if crop.mask.any():
            opacity = Image.fromarray(crop.mask * np.uint8(OPACITY))
            canvas.paste(colour, (crop.left, crop.top), opacity)
        for outline in trace_polygons(crop):
            corners = [*map(tuple, outline.tolist()), tuple(outline[0].tolist())]
            draw.line(corners, colour, max(1, line_width // 2))


def draw_keypoints(draw: ImageDraw.ImageDraw, detections: Detections, line_width: int) -> None:
    """Draw the visible keypoints of each detection, and the limbs between COCO's keypoints."""
    if detections.keypoints is None or detections.keypoint_names is None:
        return
    names = detections.keypoint_names
    colours = [keypoint_colour(name, number) for number, name in enumerate(names)]
    joined = limbs(names)
    radius = 1.2 * line_width
    for points in detections.keypoints.tolist():
        seen = [visibility > 0 for _, _, visibility in points]
        for a, b in joined:
            if seen[a] and seen[b]:
                colour = colours[a] if colours[a] == colours[b] else MIDDLE
                draw.line([tuple(points[a][:2]), tuple(points[b][:2])], colour, round(1.5 * line_width))
        for (x, y, _), is_seen, colour in zip(points, seen, colours, strict=True):
            if is_seen:
                for size, fill in ((radius + max(1, line_width / 3), (255, 255, 255)), (radius, colour)):
                    draw.ellipse((x - size, y - size, x + size, y + size), fill)


def limbs(names: list[str]) -> list[tuple[int, int]]:
    """For each limb, the numbers of the two keypoints that it joins; empty if they are not COCO's 17."""
    return [(names.index(a), names.index(b)) for a, b in LIMBS] if names == COCO_KEYPOINTS else []


def keypoint_colour(name: str, number: int) -> Colour:
    """Colour of a keypoint: by the side of the body if it is one of COCO's, otherwise by its number."""
    if name in COCO_KEYPOINTS:
        return LEFT if name.startswith("left_") else RIGHT if name.startswith("right_") else MIDDLE
    return class_colour(number)
