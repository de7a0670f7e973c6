"""Metadata never makes a picture fail or costs much memory or time; the EXIF orientation is used if it can be read."""

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.decode import decode_image

LIMIT = 10**6
RGB = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
TURNED = np.rot90(RGB, -1)  # as orientation 6 does


def encode(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind, **options)
    return buffer.getvalue()


PNG, LOSSLESS_WEBP, TIFF = encode("PNG"), encode("WEBP", lossless=True), encode("TIFF")


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def in_png(*chunks: bytes) -> bytes:
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def in_jpeg(*segments: tuple[int, bytes]) -> bytes:
    data = encode("JPEG")
    added = (struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments)
    return data[:2] + b"".join(added) + data[2:]


def in_webp(kind: bytes, content: bytes) -> bytes:
    """An extended WebP with one chunk of metadata."""
    data = encode(
        "WEBP", lossless=True, **{{b"EXIF": "exif", b"ICCP": "icc_profile", b"XMP ": "xmp"}[kind]: b"x"}
    )
    place = data.index(kind)
    end = place + 8 + 2  # one byte of content, and one of padding
    data = (
        data[:place] + kind + struct.pack("<L", len(content)) + content + bytes(len(content) % 2) + data[end:]
    )
    return data[:4] + struct.pack("<L", len(data) - 8) + data[8:]


def exif(
    *entries: tuple[int, int, int, bytes], order: str = ">", more: bytes = b"", following: int = 0
) -> bytes:
    """An EXIF block of entries (tag, type, number of values, value or offset), followed by ``more``."""
    rows = b"".join(struct.pack(f"{order}HHL", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    head = b"MM\0*\0\0\0\x08" if order == ">" else b"II*\0\x08\0\0\0"
    return head + struct.pack(f"{order}H", len(entries)) + rows + struct.pack(f"{order}L", following) + more


def orientation(value: bytes, kind: int = 3, count: int = 1) -> tuple[int, int, int, bytes]:
    return 0x0112, kind, count, value


SIX = orientation(b"\0\6")


@pytest.mark.parametrize(
    ("name", "chunks"),
    [
        ("text of 2 MB", [chunk(b"tEXt", b"Comment\0" + b"t" * 2_000_000)]),
        ("compressed text of 20 MB", [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000)))]),
        ("text of 20 MB in UTF-8", [chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(20_000_000)))]),
        ("70 texts of 1 MB", [chunk(b"tEXt", b"Comment\0" + b"t" * 1_000_000)] * 70),
        ("a profile of 20 MB", [chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(20_000_000)))]),
        ("a damaged profile", [chunk(b"iCCP", b"profile\0\0no profile")]),
        ("a wrong checksum", [chunk(b"pHYs", b"\0\0\0\1\0\0\0\1\0", checksum=0)]),
        ("a short chunk", [chunk(b"gAMA", b""), chunk(b"cHRM", b"\0"), chunk(b"acTL", b""), chunk(b"fcTL", b"")]),
        ("EXIF with a wrong checksum", [chunk(b"eXIf", exif(SIX), checksum=0)]),
    ],
)  # fmt: skip
def test_chunks_of_a_png_that_hold_no_pixels(name: str, chunks: list[bytes]) -> None:
    np.testing.assert_array_equal(decode_image(in_png(*chunks), LIMIT), RGB)
    np.testing.assert_array_equal(decode_image(PNG[:-12] + b"".join(chunks) + PNG[-12:], LIMIT), RGB)


@pytest.mark.parametrize(
    "segments",
    [
        [(0xE2, b"ICC_PROFILE\0")],
        [(0xE2, b"MPF\0II*\0\xff\xff\xff\xff")],
        [(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\1x")],
        [(0xE1, b"Exif\0\0" + b"e" * 65_000)] * 400,
        [(0xFE, b"c" * 65_000)] * 400,
    ],
    ids=["a short profile", "a broken index", "a broken resource", "much EXIF", "many comments"],
)
def test_segments_of_a_jpeg_that_hold_no_pixels(segments: list[tuple[int, bytes]]) -> None:
    expected = decode_image(encode("JPEG"), LIMIT)
    np.testing.assert_array_equal(decode_image(in_jpeg(*segments), LIMIT), expected)


def test_chunks_of_a_webp_that_hold_no_pixels() -> None:
    for kind in (b"EXIF", b"ICCP", b"XMP "):
        np.testing.assert_array_equal(decode_image(in_webp(kind, b"x" * 3_000_001), LIMIT), RGB)


def test_a_long_comment_in_a_gif_takes_no_time() -> None:
    data = encode("GIF")
    palette_end = 13 + (3 << (data[10] & 7) + 1)
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 100_000 + b"\0"
    started = time.monotonic()
    decoded = decode_image(data[:palette_end] + comment + data[palette_end:], LIMIT)
    assert time.monotonic() - started < 5  # Pillow takes a minute
    np.testing.assert_array_equal(decoded, decode_image(data, LIMIT))


def in_tiff(entries: list[tuple[int, int, int, bytes]], more: bytes) -> bytes:
    """The TIFF with more entries, in a new directory at its end, and with ``more`` at byte ``len(TIFF)``."""
    start = struct.unpack_from("<L", TIFF, 4)[0]
    count = struct.unpack_from("<H", TIFF, start)[0]
    rows = TIFF[start + 2 : start + 2 + 12 * count]
    rows += b"".join(struct.pack("<HHL", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    directory = struct.pack("<H", count + len(entries)) + rows + bytes(4)
    end = len(TIFF) + len(more)
    return TIFF[:4] + struct.pack("<L", end) + TIFF[8:] + more + directory


def test_tags_of_a_tiff_that_name_the_same_bytes_take_no_memory() -> None:
    block = 1_000_000
    entries = [(40_000 + each, 7, block, struct.pack("<L", len(TIFF))) for each in range(2000)]
    data = in_tiff(entries, bytes(block))
    tracemalloc.start()
    decoded = decode_image(data, LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(decoded, RGB)
    assert peak < 10 * len(data)  # Pillow uses 2000 times the size


def test_tags_of_a_tiff_that_no_pixel_depends_on() -> None:
    nowhere = struct.pack("<L", 2**31)
    entries = [
        (34665, 4, 1, nowhere),
        (34853, 4, 1, nowhere),
        (34675, 7, 2**30, nowhere),
        (700, 1, 9**9, nowhere),
    ]
    entries += [(282, 5, 1, struct.pack("<L", len(TIFF))), (40965, 4, 1, nowhere)]
    np.testing.assert_array_equal(decode_image(in_tiff(entries, struct.pack("<ll", -1, 0)), LIMIT), RGB)


def test_tags_of_a_tiff_that_claim_too_much_are_refused() -> None:
    entries = [(tag, 7, 3000, struct.pack("<L", 0)) for tag in (326, 327, 328, 347)]
    with pytest.raises(
        InvalidInputError, match=r"damaged or cut short: its tags claim .* bytes, but the file has"
    ):
        decode_image(in_tiff(entries, bytes(2000)), LIMIT)


def test_a_tiff_of_too_many_strips_is_refused() -> None:
    count = 300_000
    offsets, sizes = (struct.pack("<L", len(TIFF) + start) for start in (0, 4 * count))
    strips = [(273, 4, count, offsets), (279, 4, count, sizes)]
    with pytest.raises(InvalidInputError, match="one of its tags has 300000 values, more than 262144"):
        decode_image(in_tiff(strips, bytes(8 * count)), LIMIT)


RATIONAL = (0x9201, 10, 1, struct.pack(">L", 38))
BROKEN = {
    "a rational of -1/0": exif(SIX, RATIONAL, more=struct.pack(">ll", -1, 0)),
    "cut short behind it": exif(SIX, (0x9286, 7, 5000, struct.pack(">L", 30)))[:24],
    "values outside": exif(SIX, (0x010F, 2, 5000, struct.pack(">L", 9**9)), (0x8769, 4, 1, b"\xff" * 4)),
    "a directory that follows itself": exif(SIX, following=8),
    "a pointer to itself": exif(
        SIX, (0x8769, 4, 1, struct.pack(">L", 8)), (0x8825, 4, 1, struct.pack(">L", 8))
    ),
    "unknown types": exif((0x0100, 99, 1, b""), SIX, (0xFFFF, 0, 2**32 - 1, b"")),
    "little endian": exif((0x0112, 3, 1, b"\6"), order="<"),
    "as LONG": exif(orientation(b"\0\0\0\6", kind=4)),
    "as a rational": exif(orientation(struct.pack(">L", 26), kind=5), more=struct.pack(">LL", 12, 2)),
}
UNREADABLE = {
    "none": b"",
    "no EXIF": b"hello",
    "cut short in front of it": exif(SIX)[:20],
    "0": exif(orientation(b"\0\0")),
    "9": exif(orientation(b"\0\x09")),
    "a string": exif(orientation(b"6", kind=2, count=2)),
    "two values": exif(orientation(b"\0\6\0\6", count=2)),
    "no value": exif(orientation(b"\0\6", count=0)),
    "six and a half": exif(orientation(struct.pack(">L", 26), kind=5), more=struct.pack(">LL", 13, 2)),
    "a rational of 6/0": exif(orientation(struct.pack(">L", 26), kind=5), more=struct.pack(">LL", 6, 0)),
    "a rational outside": exif(orientation(struct.pack(">L", 9**9), kind=5)),
    "a directory outside": b"MM\0*\xff\xff\xff\xff",
    "BigTIFF outside": b"II\x2b\0\x08\0\0\0" + b"\xff" * 8,
    "another version": exif(SIX).replace(b"MM\0*", b"MM\0."),
}  # fmt: skip


@pytest.mark.parametrize("name", [*BROKEN, *UNREADABLE])
def test_broken_exif_costs_no_picture(name: str) -> None:
    block = {**BROKEN, **UNREADABLE}[name]
    expected = TURNED if name in BROKEN else RGB
    np.testing.assert_array_equal(decode_image(in_png(chunk(b"eXIf", block)), LIMIT), expected)
    np.testing.assert_array_equal(decode_image(in_webp(b"EXIF", block), LIMIT), expected)
    np.testing.assert_array_equal(decode_image(in_webp(b"EXIF", b"Exif\0\0" + block), LIMIT), expected)
    decoded = decode_image(in_jpeg((0xE1, b"Exif\0\0" + block)), LIMIT)
    stored = decode_image(encode("JPEG"), LIMIT)
    np.testing.assert_array_equal(decoded, np.rot90(stored, -1) if name in BROKEN else stored)


def test_exif_behind_the_pixels_of_a_png() -> None:
    np.testing.assert_array_equal(
        decode_image(PNG[:-12] + chunk(b"eXIf", exif(SIX)) + PNG[-12:], LIMIT), TURNED
    )


def test_the_orientation_of_a_tiff() -> None:
    for value, expected in ((b"\6\0", TURNED), (b"\x09\0", RGB)):
        np.testing.assert_array_equal(decode_image(in_tiff([(0x0112, 3, 1, value)], b""), LIMIT), expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PNG[:20], "damaged or cut short"),
        (PNG[:16] + b"\xff" + PNG[17:], r"damaged or cut short: broken PNG file \(bad header checksum in b'IHDR'\)"),
        (encode("JPEG")[:30], "damaged or cut short"),
        (encode("GIF")[:8], "damaged or cut short"),
        (TIFF[:6], "damaged or cut short"),
    ],
)  # fmt: skip
def test_a_damaged_header_is_not_called_another_format(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        decode_image(data, LIMIT)
