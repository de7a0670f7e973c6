"""Opens a picture file in the client, to draw on it or to read its size."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")  # what the server decodes, by Pillow's names

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END = 33  # of a PNG


def open_picture(picture: Path | bytes) -> Image.Image:
    """Open a picture even if its texts, profile or EXIF are faulty; the server ignores such faults, too.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a picture in one of FORMATS.
    """
    data = picture if isinstance(picture, bytes) else picture.read_bytes()
    try:
        image = Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError("is not an image of a known format") from error
    image.info.pop("xmp", None)  # it may hold another orientation
    return image


def _without_texts(data: bytes) -> bytes:
    """A PNG without ancillary chunks other than EXIF, which is put in front of the pixels; other files as they are."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept, exif, position = [], b"", HEADER_END
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, position)
        end = position + 8 + length + 4  # a checksum follows the content
        if not kind[0] & 0x20:  # ancillary chunks have a name in lower case
            kept.append(data[position:end])
        elif kind == b"eXIf" and not exif:
            checksum = zlib.crc32(data[position + 4 : end - 4]).to_bytes(4, "big")
            exif = data[position:end] if data[end - 4 : end] == checksum else b""
        position = end
    return b"".join((data[:HEADER_END], exif, *kept))
