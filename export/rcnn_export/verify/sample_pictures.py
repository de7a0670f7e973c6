"""Pictures of mixed sizes to try a detector on, made from photos that scikit-learn and scikit-image ship."""

import io

import numpy as np
from PIL import Image

from rcnn_export.photos import load_photo

PHOTOS = ("china.jpg", "flower.jpg", "astronaut", "chelsea", "coffee", "rocket")
# Width and height in pixels, from a thumbnail to a picture that is scaled down. In batches of 1, 3 and 8, the three are
# in portrait and landscape format, and the eight are strips, for which R50 needs a third of the time and memory.
SIZES = (
    (1333, 1000),
    (48, 64),
    (640, 480),
    (1000, 1333),
    (320, 80),
    (1333, 333),
    (133, 33),
    (640, 160),
    (1000, 250),
    (64, 16),
    (800, 200),
    (500, 125),
)


def sample_pictures(count: int = len(SIZES), seed: int = 0) -> dict[str, bytes]:
    """``count`` PNG files by name: random crops of the photos, scaled to each of SIZES in turn, some mirrored."""
    rng = np.random.default_rng(seed)
    pictures = {}
    for index in range(count):
        width, height = SIZES[index % len(SIZES)]
        photo = load_photo(PHOTOS[index % len(PHOTOS)])
        scale = min(photo.width / width, photo.height / height) * rng.uniform(0.6, 1)  # photo pixels a pixel
        left = rng.uniform(0, photo.width - scale * width)
        top = rng.uniform(0, photo.height - scale * height)
        crop = (left, top, left + scale * width, top + scale * height)
        picture = photo.resize((width, height), Image.Resampling.BICUBIC, box=crop)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        encoded = io.BytesIO()
        picture.save(encoded, "PNG")
        pictures[f"sample {index} ({width}x{height})"] = encoded.getvalue()
    return pictures
