"""The sample dataset: scikit-learn's real handwritten digits, composed onto cluttered backgrounds.

Picture ``index`` of a split is a pure function of ``(split, index)``: nothing is stored, a split has any number of
pictures, and the splits share neither source digits, nor background photos, nor seeds.

Boxes are left, top, right, bottom in pixels; labels run from 1 (the digit zero) to 10 (the digit nine).
"""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from rcnn_export.digits.backgrounds import draw_background
from rcnn_export.digits.keypoints import HIDDEN, KEYPOINT_NAMES, VISIBLE, extreme_points

SPLITS = ("train", "held-out")
CLASS_NAMES = tuple("0123456789")
HELD_OUT_SHARE = 0.2  # of the source digits of each class
SIDE_RANGE_PX = (256, 480)
DIGIT_SIZE_RANGE_PX = (20, 140)  # the approximate longer side of the ink
MAX_ROTATION_DEGREES = 25  # small enough to distinguish a 6 from a 9
MAX_DIGITS = 10
MAX_HIDDEN_SHARE = 0.2  # of a digit's ink, hidden by digits drawn over it
INK_THRESHOLD = 0.5  # a pixel at least this opaque belongs to the digit


@dataclass(frozen=True)
class DigitPicture:
    """One composed picture and its annotation.

    Attributes:
        pixels: uint8 [H, W, 3], RGB.
        boxes: float32 [D, 4], left, top, right, bottom in pixels, tight around the ink.
        labels: int64 [D], the digit plus one.
        masks: bool [D, H, W], each digit's ink, including ink that another digit hides.
        keypoints: float32 [D, 4, 3], x and y in pixels and COCO's visibility of each digit's ``extreme_points``.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    keypoints: np.ndarray


def source_digits(split: str) -> np.ndarray:
    """The rows of ``load_digits()`` that a split draws its digits from."""
    return _split_rows()[split]


def compose_picture(split: str, index: int) -> DigitPicture:
    """Composes the ``index``-th picture of ``split`` ("train" or "held-out")."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([SPLITS.index(split), index])
    height, width = (int(side) for side in rng.integers(SIDE_RANGE_PX[0], SIDE_RANGE_PX[1] + 1, 2))
    canvas = draw_background(split, (height, width), rng).astype(np.float32)
    topmost = np.zeros((height, width), np.int64)  # the digit whose ink each pixel shows, from 1; 0 for none
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    masks: list[np.ndarray] = []
    for _ in range(rng.integers(1, MAX_DIGITS + 1)):
        row = rng.choice(source_digits(split))
        opacity = _draw_digit(_source_images()[row], rng)
        ink = opacity >= INK_THRESHOLD
        place = _find_place(ink, topmost, masks, rng)
        if place is None:
            continue
        canvas[place] = _paint(canvas[place], opacity, rng)
        mask = np.zeros((height, width), bool)
        mask[place] = ink
        masks.append(mask)
        topmost[place][ink] = len(masks)
        left, top, right, bottom = _bounding_box(ink)
        x, y = place[1].start, place[0].start
        boxes.append((x + left, y + top, x + right, y + bottom))
        labels.append(int(_source_labels()[row]) + 1)
    return DigitPicture(
        pixels=_photograph(canvas, rng),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        masks=np.array(masks, bool).reshape(-1, height, width),
        keypoints=_keypoints(masks, topmost),
    )


def _keypoints(masks: list[np.ndarray], topmost: np.ndarray) -> np.ndarray:
    """The keypoints of each digit's ink; a keypoint under another digit is hidden."""
    keypoints = np.zeros((len(masks), len(KEYPOINT_NAMES), 3), np.float32)
    for number, mask in enumerate(masks, start=1):
        x, y = extreme_points(mask).T
        keypoints[number - 1, :, 0], keypoints[number - 1, :, 1] = x + 0.5, y + 0.5
        keypoints[number - 1, :, 2] = np.where(topmost[y, x] == number, VISIBLE, HIDDEN)
    return keypoints


@lru_cache
def _source_images() -> np.ndarray:
    return np.asarray(load_digits().images, np.float32) / 16  # [1797, 8, 8], ink in 0..1


@lru_cache
def _source_labels() -> np.ndarray:
    return np.asarray(load_digits().target)


@lru_cache
def _split_rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    held_out = []
    for digit in range(10):
        rows = np.flatnonzero(_source_labels() == digit)
        held_out.append(rng.choice(rows, int(len(rows) * HELD_OUT_SHARE), replace=False))
    held_out_rows = np.sort(np.concatenate(held_out))
    train_rows = np.setdiff1d(np.arange(len(_source_labels())), held_out_rows)
    return {"train": train_rows, "held-out": held_out_rows}


def _draw_digit(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Enlarges 8x8 ink smoothly, rotated, slanted and stretched: opacity float32 [h, w] in 0..1, cropped."""
    low, high = DIGIT_SIZE_RANGE_PX
    size_px = low * (high / low) ** rng.random()  # the logarithm of the size is uniform
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    angle = np.radians(rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))
    slant = rng.uniform(-0.15, 0.15)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    to_picture = rotation @ np.array([[stretch, slant], [0, 1 / stretch]]) * (size_px / 8)
    to_source = np.linalg.inv(to_picture)  # picture (x, y) -> source (x, y)

    margin = 3  # empty source pixels around the digit, which bicubic interpolation reads
    source = Image.fromarray(np.pad(ink, margin))  # mode F, 14x14
    source_centre = np.full(2, 4.0 + margin)
    side = int(np.ceil(size_px * 1.75))  # room for the corners
    offset = source_centre - to_source @ np.full(2, side / 2)
    coefficients = (*to_source[0], offset[0], *to_source[1], offset[1])
    enlarged = source.transform((side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)

    # A steep ramp around the stroke's edge turns the blurred ink into a sharp stroke of varying thickness.
    threshold = rng.uniform(0.3, 0.5)
    steepness = rng.uniform(2.0, 8.0)
    opacity = np.clip((np.asarray(enlarged) - threshold) * steepness + INK_THRESHOLD, 0, 1)
    left, top, right, bottom = _bounding_box(opacity > 0)
    return opacity[top:bottom, left:right]


def _find_place(
    ink: np.ndarray, topmost: np.ndarray, masks: list[np.ndarray], rng: np.random.Generator
) -> tuple[slice, slice] | None:
    """Tries a few random places and returns rows and columns of one where every digit stays legible, or None."""
    free_height, free_width = topmost.shape[0] - ink.shape[0], topmost.shape[1] - ink.shape[1]
    if free_height < 0 or free_width < 0:
        return None
    seen = np.bincount(topmost.ravel(), minlength=len(masks) + 1)[1:]
    whole = np.array([mask.sum() for mask in masks])
    for _ in range(10):
        top, left = int(rng.integers(free_height + 1)), int(rng.integers(free_width + 1))
        place = slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1])
        newly_hidden = np.bincount(topmost[place][ink], minlength=len(masks) + 1)[1:]
        earlier_legible = np.all(seen - newly_hidden >= (1 - MAX_HIDDEN_SHARE) * whole)
        # A digit drawn within another's stroke is as hard to see as a hidden one.
        if earlier_legible and newly_hidden.sum() <= MAX_HIDDEN_SHARE * ink.sum():
            return place
    return None


def _paint(under: np.ndarray, opacity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blends a digit over ``under``, float32 [h, w, 3] in 0..255, in a colour with enough contrast."""
    behind = under[opacity >= INK_THRESHOLD].mean(axis=0)
    contrast = rng.uniform(60, 160)
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - behind).mean() >= contrast:
            break
        contrast *= 0.95  # no colour differs enough from mid grey
    strength = opacity[:, :, None] * rng.uniform(0.8, 1.0)
    return np.asarray(under * (1 - strength) + colour.astype(np.float32) * strength)


def _photograph(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds a camera's sensor noise and JPEG compression, and rounds to uint8."""
    amplitude = rng.uniform(0, 12)
    noise = rng.integers(-128, 128, canvas.shape, dtype=np.int8) * np.float32(amplitude / 128)
    picture = Image.fromarray(np.clip(canvas + noise, 0, 255).astype(np.uint8))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=int(rng.integers(60, 96)))
    return np.asarray(Image.open(encoded))


def _bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
