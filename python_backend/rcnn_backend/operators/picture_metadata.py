"""Removes the metadata from a picture file before Pillow opens it.

Pillow reads texts, profiles, comments and EXIF before any pixel. If they are damaged, it refuses the picture. It limits
their size by global variables of the whole process. And a small file can make it use gigabytes or take hours: with tags
that all point to the same megabyte, with compressed text, or with a comment in a million blocks. No pixel depends on any
of this. So the functions here copy only what the pixels depend on, in one pass over the file, and decompress nothing.
"""

import re
import struct
import zlib
from collections.abc import Iterator

from rcnn_backend.operators.tiff_directory import strip_tiff

EXIF_HEADER = b"Exif\0\0"

JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
END_OF_IMAGE, START_OF_SCAN, APP1 = 0xD9, 0xDA, 0xE1
# APP1 to APP15 and the comment, without APP14 (Adobe), because APP14 and APP0 (JFIF) determine the colour space.
JPEG_METADATA = {*range(APP1, 0xEE), 0xEF, 0xFE}

GIF_BLOCK = re.compile(rb"[!,;]")
GRAPHIC_CONTROL = b"\xf9"


def without_metadata(data: bytes, kind: str) -> tuple[bytes, bytes]:
    """The file without its metadata, and its EXIF block, which is empty if the file has none.

    Args:
        kind: Pillow's name of the format. WebP and BMP are not changed, because Pillow only copies their metadata.

    Raises:
        ValueError: the tags of a TIFF claim more bytes than the file has, or one has too many values.
        IndexError: a GIF ends inside its header.
    """
    strip = {"JPEG": _strip_jpeg, "PNG": _strip_png, "GIF": _strip_gif, "TIFF": strip_tiff}.get(kind)
    return strip(data) if strip else (data, b"")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG, to the end of its image."""
    position = 2
    while found := JPEG_MARKER.search(data, position):  # a scan's data contains no such marker
        marker = data[found.start() + 1]
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield marker, found.start(), position
        if marker == END_OF_IMAGE:
            return


def _strip_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Removes the comments and APP segments before the first scan, except for JFIF's and Adobe's."""
    kept, kept_to, exif = [], 0, b""
    for marker, start, end in jpeg_segments(data):
        if marker == START_OF_SCAN:
            break
        if marker in JPEG_METADATA:
            if start > kept_to:
                kept.append(data[kept_to:start])
            kept_to = end
            if marker == APP1 and not exif and data.startswith(EXIF_HEADER, start + 4):
                exif = data[start + 4 : end]
    return b"".join((*kept, data[kept_to:])), exif


def _strip_png(data: bytes) -> tuple[bytes, bytes]:
    """Removes every ancillary chunk: texts, profiles, transparency, and all frames of an animation but the first."""
    kept, position, exif = [data[:8]], 8, b""
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, position)
        end = position + 8 + length + 4  # a checksum follows the content
        if not kind[0] & 0x20:  # the names of ancillary chunks start with a lower-case letter
            kept.append(data[position:end])
        elif kind == b"eXIf" and not exif:
            checksum = zlib.crc32(data[position + 4 : end - 4]).to_bytes(4, "big")
            exif = data[position + 8 : end - 4] if data[end - 4 : end] == checksum else b""
        position = end
    return b"".join(kept), exif


def _strip_gif(data: bytes) -> tuple[bytes, bytes]:
    """Removes every extension before the first picture, except for the index of its transparent colour."""
    position = 13 + ((3 << (data[10] & 7) + 1) if data[10] & 0x80 else 0)
    header, transparency = data[:position], b""
    while (found := GIF_BLOCK.search(data, position)) and found.group() == b"!":
        start = position = found.end() + 1
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
        block = data[start + 1 : start + 5]  # flags, two bytes of duration, the transparent colour
        if data[start - 1 : start] == GRAPHIC_CONTROL and len(block) == 4 and block[0] & 1:
            transparency = b"!\xf9\x04\x01\0\0" + block[3:] + b"\0"
    return header + transparency + data[found.start() if found else len(data) :], b""
