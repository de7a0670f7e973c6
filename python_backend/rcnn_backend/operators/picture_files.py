"""Opens a picture file with Pillow, without the limits that Pillow keeps in global variables.

``PIL.Image.open`` refuses pictures above ``PIL.Image.MAX_IMAGE_PIXELS``, and texts and profiles above other limits.
These limits apply to the whole process, which may belong to a caller, so they must not be changed. Instead, the files
are opened here in the same way as in ``PIL.Image.open``, but without their metadata, and the caller checks the size
against the model's limit before it decodes any pixel.
"""

import io
import struct
from collections.abc import Sequence

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from rcnn_backend.operators.picture_metadata import EXIF_HEADER, without_metadata
from rcnn_backend.operators.tiff_directory import read_orientation

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")  # senders cannot use any other decoder
NUM_SIGNATURE_BYTES = 16  # Pillow recognises a format by these first bytes


class _TiffFile(TiffImagePlugin.TiffImageFile):
    """A TIFF whose memory is allocated here, so that Pillow does not check its size again."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size, None).im  # None: do not clear the memory
        super().load_prepare()


def open_picture(data: bytes, formats: Sequence[str] = FORMATS) -> ImageFile.ImageFile:
    """Reads a picture file's header; its pixels are decoded when they are first used.

    Args:
        formats: names of Pillow's formats, all from FORMATS.

    Returns:
        the picture as it is stored, without its metadata. ``info["orientation"]`` is its EXIF orientation,
        1 to 8, and 1 if it has none that can be read.

    Raises:
        UnidentifiedImageError: the bytes are not in any of these formats. If they start like one of them, the cause is
            Pillow's error.
        Exception: any other exception that Pillow raises on a damaged file.
    """
    Image.preinit()
    fault = None
    for name in formats:
        if name not in Image.OPEN:
            Image.init()
        opener, accepts = Image.OPEN[name]
        if name == "TIFF":
            opener = _TiffFile
        if accepts is not None and accepts(data[:NUM_SIGNATURE_BYTES]) is not True:  # a str is a refusal
            continue
        try:
            stripped, exif = without_metadata(data, name)
            image: ImageFile.ImageFile = opener(io.BytesIO(stripped), "")
        except (
            SyntaxError,
            IndexError,
            TypeError,
            struct.error,
        ) as error:  # looks like this format, but is not
            fault = error
            continue
        exif = exif or image.info.get("exif", b"")
        image.info["orientation"] = read_orientation(exif.removeprefix(EXIF_HEADER))
        return image
    raise UnidentifiedImageError from fault
