"""A video of held-out digits that move back and forth, each in its own lane, with their boxes.

Neighbours may touch when they pass each other. No digit hides another, because ByteTrack, which uses only motion, might
then swap them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from rcnn_export.digits.backgrounds import draw_background
from rcnn_export.digits.compose import compose_picture

SIZE_HW = (272, 320)
SHORTEST_SIDE_PX, LONGEST_SIDE_PX = 40, 90
SWAY_PX = 3  # up and down
PLAIN = 1  # the seed of a background in which the detector finds no digit


class Digit(NamedTuple):
    """Pixels and ink of a digit, cut out of a picture."""

    pixels: np.ndarray  # uint8 [h, w, 3], RGB
    ink: np.ndarray  # bool [h, w]


def held_out_digits(count: int) -> list[Digit]:
    """The first digits in the held-out pictures that overlap no other digit and have a suitable size."""
    digits: list[Digit] = []
    index = 0
    while len(digits) < count:
        picture = compose_picture("held-out", index)
        for box, mask in zip(picture.boxes.astype(int), picture.masks, strict=True):
            x1, y1, x2, y2 = box
            is_alone = picture.masks[:, y1:y2, x1:x2].any(axis=(1, 2)).sum() == 1
            sides = (y2 - y1, x2 - x1)
            if is_alone and min(sides) >= SHORTEST_SIDE_PX and max(sides) <= LONGEST_SIDE_PX:
                digits.append(Digit(picture.pixels[y1:y2, x1:x2], mask[y1:y2, x1:x2]))
        index += 1
    return digits[:count]


def moving_digits(num_frames: int, num_digits: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields each frame, uint8 [272, 320, 3] in RGB order, and the box of each digit, float [D, 4]: x1, y1, x2, y2."""
    rng = np.random.default_rng(seed)
    background = draw_background("held-out", SIZE_HW, np.random.default_rng(PLAIN))
    digits = held_out_digits(num_digits)
    sizes = np.array([digit.ink.shape[::-1] for digit in digits])  # [D, 2]: width, height
    room = SIZE_HW[1] - sizes[:, 0]
    lanes = np.cumsum([0, *sizes[:-1, 1]])
    places, steps = rng.uniform(0, room), rng.uniform(1, 3, num_digits) * rng.choice((-1, 1), num_digits)
    for number in range(num_frames):
        frame = background.copy()
        rows = lanes + SWAY_PX * (1 + np.sin(number / 10 + np.arange(num_digits)))
        corners = np.stack((places, rows), axis=1).round().astype(int)
        for (pixels, ink), (x, y), (width, height) in zip(digits, corners, sizes, strict=True):
            frame[y : y + height, x : x + width][ink] = pixels[ink]
        yield frame, np.hstack((corners, corners + sizes)).astype(float)
        places = places + steps
        steps = np.where((places < 0) | (places > room), -steps, steps)
        places = np.clip(places, 0, room)
