"""Reads only the orientation of a picture, so that faults in its other EXIF data do not matter."""

from __future__ import annotations

from PIL import ExifTags, Image

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The items of a picture's info in which Pillow finds an orientation.
SOURCES = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def orientation(image: Image.Image) -> int:
    """The orientation that Pillow finds: 1 to 8; 1 if there is none or it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
        return int(value) if value in TURNS else 1
    except Exception:  # Pillow raises many kinds on damaged EXIF
        return 1


def upright(image: Image.Image) -> Image.Image:
    """The picture turned by its orientation; if it was turned, a copy without an orientation."""
    image.load()  # turns a TIFF, and reads EXIF that follows the pixels of a PNG
    turn = TURNS.get(orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for source in SOURCES:
        turned.info.pop(source, None)
    return turned


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels, upright, of a picture that is open and not yet loaded."""
    width, height = image.size
    number = orientation(image)
    if tags := getattr(image, "tag_v2", None):  # a TIFF; some versions of Pillow give its size upright
        width, height = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
        number = tags.get(ExifTags.Base.Orientation)
    return (height, width) if number in (5, 6, 7, 8) else (width, height)
