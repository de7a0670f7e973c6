"""Reads the first image file directory of a TIFF file or of an EXIF block, which has the same format."""

import struct
from typing import NamedTuple

VERSIONS = (b"\x2a\0", b"\0\x2a", b"\x2b\0", b"\0\x2b")  # in both byte orders, as Pillow accepts them
ORIENTATION = 0x0112
# The tags of TIFF 6.0 and of libtiff's codecs that describe how pixels are stored. All others are removed: texts,
# resolution, profiles, EXIF, and the orientation, which Pillow would apply by itself.
STORAGE_TAGS = frozenset(
    int(tag)
    for tag in [
        "256",
        "257",
        "258",
        "259",
        "262",
        "266",
        "273",
        "277",
        "278",
        "279",
        "284",
        "292",
        "293",
        "317",
        "320",
        "322",
        "323",
        "324",
        "325",
        "326",
        "327",
        "328",
        "332",
        "334",
        "338",
        "339",
        "347",
        "512",
        "513",
        "514",
        "515",
        "516",
        "517",
        "518",
        "519",
        "520",
        "521",
        "529",
        "530",
        "531",
        "532",
        "50674",
    ]
)
TYPE_SIZES = dict(
    zip((*range(1, 14), 16, 17, 18), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8), strict=True)
)  # bytes
NUMBERS = {3: "H", 4: "L", 5: "LL", 8: "h", 9: "l", 10: "ll"}  # struct's letters, two for rationals


MAX_VALUES = 1 << 18  # per tag: enough for tiles of 16x16 pixels in a picture of 67 megapixels


class Entry(NamedTuple):
    """A tag's type, the number of its values, and the values, or their offset if they need more bytes than an offset."""

    kind: int
    num_values: int
    value: bytes


class Directory(NamedTuple):
    """The entries by tag, and struct's letters for the byte order, for an offset and for the number of entries."""

    entries: dict[int, Entry]
    order: str
    offset: str
    length: str


def read_directory(data: bytes) -> Directory | None:
    """The first directory; None if the bytes are not a TIFF. If the directory is cut short, it ends at the cut."""
    if data[:2] not in (b"II", b"MM") or data[2:4] not in VERSIONS:
        return None
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:3] == b"\x2b"  # BigTIFF; Pillow supports it only in little-endian order
    offset, length = ("Q", "Q") if is_big else ("L", "H")
    try:
        (start,) = struct.unpack_from(f"{order}{offset}", data, 8 if is_big else 4)
        (count,) = struct.unpack_from(f"{order}{length}", data, start)
    except (struct.error, OverflowError):  # an offset beyond the end
        return None
    layout = struct.Struct(f"{order}HH{offset}{struct.calcsize(f'={offset}')}s")
    start += struct.calcsize(f"={length}")
    count = min(count, (len(data) - start) // layout.size)
    rows = layout.iter_unpack(data[start : start + count * layout.size])
    return Directory({tag: Entry(*row) for tag, *row in rows}, order, offset, length)


def read_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block or a TIFF file: 1 to 8, and 1 if there is none that can be read."""
    directory = read_directory(exif)
    entry = directory.entries.get(ORIENTATION) if directory else None
    if not directory or not entry or entry.num_values != 1 or entry.kind not in NUMBERS:
        return 1
    layout, value = directory.order + NUMBERS[entry.kind], entry.value
    try:
        if struct.calcsize(layout) > len(value):
            (start,) = struct.unpack(directory.order + directory.offset, value)
            value = exif[start:]
        number, *divisor = struct.unpack_from(layout, value)
        orientation = number / divisor[0] if divisor else number
    except (struct.error, ZeroDivisionError):
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def strip_tiff(data: bytes) -> tuple[bytes, bytes]:
    """The TIFF with a directory of only STORAGE_TAGS and without further pages; and the original TIFF as its EXIF block.

    Raises:
        ValueError: these tags claim more bytes than the file has, or a tag has more than MAX_VALUES values.
    """
    directory = read_directory(data)
    if directory is None:
        return data, b""
    entries, order, offset, length = directory
    num_bytes = {tag: each.num_values * TYPE_SIZES.get(each.kind, 0) for tag, each in entries.items()}
    kept = [tag for tag in sorted(STORAGE_TAGS & entries.keys()) if num_bytes[tag] <= len(data)]
    claimed = sum(num_bytes[tag] for tag in kept)
    if claimed > len(data):
        raise ValueError(f"its tags claim {claimed} bytes, but the file has {len(data)}")
    most = max((entries[tag].num_values for tag in kept), default=0)
    if most > MAX_VALUES:  # Pillow takes half a minute for two million strips
        raise ValueError(f"one of its tags has {most} values, more than {MAX_VALUES}")
    padding = bytes(-len(data) % 8)
    start = struct.pack(order + offset, len(data) + len(padding))
    width = len(start)  # of an offset, and also of the part of the header before the directory's offset
    rows = (struct.pack(f"{order}HH{offset}{width}s", tag, *entries[tag]) for tag in kept)
    written = (struct.pack(order + length, len(kept)), *rows, bytes(width))
    return b"".join((data[:width], start, data[2 * width :], padding, *written)), data
