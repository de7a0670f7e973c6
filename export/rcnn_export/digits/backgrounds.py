"""Cluttered backgrounds for the digits: real photos, gradients and noise, with lines and shapes on top.

The two splits use different photos.
"""

import numpy as np
from PIL import Image, ImageDraw

from rcnn_export.photos import load_photo

PHOTOS = {
    "train": (
        "china.jpg",
        "flower.jpg",
        "astronaut",
        "brick",
        "grass",
        "gravel",
        "hubble_deep_field",
        "immunohistochemistry",
    ),
    "held-out": ("chelsea", "coffee", "rocket"),
}


def draw_background(split: str, size_hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draws one background as uint8 [H, W, 3]."""
    kind = rng.random()
    if kind < 0.5:
        picture = _photo_crop(split, size_hw, rng)
    elif kind < 0.75:
        picture = _gradient(size_hw, rng)
    else:
        picture = _smooth_noise(size_hw, rng)
    if rng.random() < 0.6:
        picture = _draw_clutter(picture, rng)
    return np.asarray(picture)


def _photo_crop(split: str, size_hw: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    height, width = size_hw
    photo = load_photo(PHOTOS[split][rng.integers(len(PHOTOS[split]))])
    largest = min(photo.width / width, photo.height / height)  # photo pixels per picture pixel
    scale = largest * rng.uniform(0.4, 1.0)
    left = rng.uniform(0, photo.width - scale * width)
    top = rng.uniform(0, photo.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    crop = photo.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _gradient(size_hw: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    height, width = size_hw
    corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    # The sampled box spans the four pixel centres, so that the corners get the corner colours.
    return Image.fromarray(corners).resize(
        (width, height), Image.Resampling.BILINEAR, box=(0.5, 0.5, 1.5, 1.5)
    )


def _smooth_noise(size_hw: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Colour noise with blotches of three sizes, from a few pixels to a quarter of the picture."""
    height, width = size_hw
    base = Image.new("RGB", (width, height), _colour(rng))
    for cells in (4, 12, int(rng.integers(30, 120))):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layer = noise.resize((width, height), Image.Resampling.BICUBIC)
        base = Image.blend(base, layer, rng.uniform(0.1, 0.4))
    return base


def _draw_clutter(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lines, arcs, ellipses, rectangles and polygons, which are not digits."""
    layer = picture.copy()
    draw = ImageDraw.Draw(layer)
    for _ in range(rng.integers(2, 14)):
        shape = rng.integers(5)
        colour = _colour(rng)
        stroke_width = int(rng.integers(1, 9))
        centre = rng.uniform(0, 1, 2) * picture.size
        reach = rng.uniform(8, 90, 2)
        box = (*(centre - reach), *(centre + reach))
        if shape == 0:
            end = rng.uniform(0, 1, 2) * picture.size
            draw.line((*centre, *end), fill=colour, width=stroke_width)
        elif shape == 1:
            start_degrees = rng.uniform(0, 360)
            draw.arc(
                box, start_degrees, start_degrees + rng.uniform(30, 200), fill=colour, width=stroke_width
            )
        elif shape == 2:
            draw.ellipse(box, fill=colour)
        elif shape == 3:
            draw.rectangle(box, fill=colour)
        else:
            corners = centre + rng.uniform(-80, 80, (int(rng.integers(3, 6)), 2))
            draw.polygon([tuple(corner) for corner in corners], fill=colour)
    return Image.blend(picture, layer, rng.uniform(0.4, 1.0))


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)
