"""The photos inside the scikit-learn and scikit-image packages; nothing is downloaded."""

from functools import lru_cache

from PIL import Image


@lru_cache
def load_photo(name: str) -> Image.Image:
    """A photo in RGB, by its file name in scikit-learn or its function's name in ``skimage.data``."""
    from skimage import data  # these two take seconds to import
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)()
    return Image.fromarray(pixels).convert("RGB")
