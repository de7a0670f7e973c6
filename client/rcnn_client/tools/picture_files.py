"""Which files of a folder are pictures."""

from __future__ import annotations

import functools

from PIL import Image

from .._picture_files import FORMATS

# Pictures that the server cannot decode. If a folder contains some, the user should be told that they are left out.
OTHER_SUFFIXES = frozenset(
    [
        ".arw",
        ".avif",
        ".cr2",
        ".cr3",
        ".dib",
        ".dng",
        ".exr",
        ".hdr",
        ".heic",
        ".heif",
        ".ico",
        ".j2k",
        ".jp2",
        ".jpx",
        ".jxl",
        ".nef",
        ".orf",
        ".pbm",
        ".pcx",
        ".pgm",
        ".pnm",
        ".ppm",
        ".psd",
        ".raf",
        ".rw2",
        ".svg",
        ".tga",
    ]
)


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """The file extensions of FORMATS, in lower case. An MPO is a JPEG followed by more pictures."""
    registered = Image.registered_extensions()
    return frozenset(suffix for suffix, name in registered.items() if name in (*FORMATS, "MPO"))
