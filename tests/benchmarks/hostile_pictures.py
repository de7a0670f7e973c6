"""Picture files as an attacker would send them: damaged at random, or with false headers."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
SIZE_WH = (96, 32)
EXTREMES = (
    0,
    1,
    2,
    3,
    7,
    8,
    255,
    256,
    4097,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)


def hostile_picture(number: int) -> bytes:
    """The ``number``-th picture of an endless sequence that is the same in every run."""
    rng = random.Random(number)
    return rng.choice((_bits_flipped, _cut_short, _bytes_set, _spliced, _repeated, _header_lies))(rng)


def seed_picture(rng: random.Random) -> bytes:
    """A small valid file in a random format with random options."""
    noise = np.random.default_rng(rng.randrange(1 << 32)).integers(0, 256, (*SIZE_WH[::-1], 3), np.uint8)
    image = Image.fromarray(noise).resize(SIZE_WH, Image.Resampling.BICUBIC)
    kind = rng.choice(FORMATS)
    options: dict[str, object] = {}
    if kind == "JPEG":
        options = {"progressive": rng.random() < 0.5, "subsampling": rng.choice((0, 1, 2))}
        image = image.convert(rng.choice(("RGB", "L", "CMYK")))
    elif kind == "PNG":
        image = image.convert(rng.choice(("RGB", "RGBA", "L", "LA", "P", "1", "I")))
    elif kind == "WEBP":
        options = {"lossless": rng.random() < 0.5}
        image = image.convert(rng.choice(("RGB", "RGBA")))
    elif kind == "TIFF":
        compressions = (None, "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
        options = {"compression": rng.choice(compressions)}
        image = image.convert("1" if options["compression"] == "group4" else rng.choice(("RGB", "L")))
    elif kind == "GIF":
        image = image.convert("P")
    if kind in ("GIF", "PNG", "WEBP", "TIFF") and rng.random() < 0.3:
        options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)] * 2}
    if kind in ("JPEG", "PNG", "WEBP", "TIFF") and rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(1, 9)
        options |= {"exif": exif.tobytes(), "icc_profile": rng.randbytes(rng.choice((8, 500, 70_000)))}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _bits_flipped(rng: random.Random) -> bytes:
    data = bytearray(seed_picture(rng))
    for _ in range(rng.choice((1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut_short(rng: random.Random) -> bytes:
    data = seed_picture(rng)
    return data[: rng.randrange(len(data))]


def _bytes_set(rng: random.Random) -> bytes:
    """Replaces bytes near the beginning of the file, where the headers are, by extreme numbers."""
    data = bytearray(seed_picture(rng))
    for _ in range(rng.choice((1, 2, 4))):
        order, form = rng.choice("<>"), rng.choice("BHI")
        number = struct.pack(order + form, rng.choice(EXTREMES) % (1 << 8 * struct.calcsize(form)))
        place = rng.randrange(min(len(data), rng.choice((64, 300, 2000))))
        data[place : place + len(number)] = number
    return bytes(data)


def _spliced(rng: random.Random) -> bytes:
    one, other = seed_picture(rng), seed_picture(rng)
    return one[: rng.randrange(len(one))] + other[rng.randrange(len(other)) :]


def _repeated(rng: random.Random) -> bytes:
    """Repeats a part of the file many times: scans, chunks, frames, tags."""
    data = seed_picture(rng)
    first = rng.randrange(len(data))
    last = rng.randrange(first, min(len(data), first + 600)) + 1
    return data[:last] + data[first:last] * rng.choice((1, 10, 500)) + data[last:]


def _header_lies(rng: random.Random) -> bytes:
    make: Callable[[random.Random], bytes] = rng.choice((_png, _gif, _tiff, _webp, _bmp, _jpeg))
    return make(rng)


def _side(rng: random.Random) -> int:
    return rng.choice((*EXTREMES, rng.randrange(1, 9000), rng.randrange(1, 300)))


def _png(rng: random.Random) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        length = len(body) if rng.random() < 0.95 else rng.choice(EXTREMES)
        return struct.pack(">I", length) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = (_side(rng), _side(rng), rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 1)), 0, 0)
    pixels = zlib.compress(bytes(rng.choice((0, 1000, 5_000_000))))
    extras = {
        b"iCCP": b"name\0\0" + zlib.compress(bytes(3_000_000)),
        b"zTXt": b"key\0\0" + zlib.compress(bytes(3_000_000)),
        b"eXIf": b"MM\0*\0\0\0\x08" + rng.randbytes(200),
        b"PLTE": rng.randbytes(rng.choice((3, 768, 4000))),
        b"acTL": struct.pack(">II", rng.choice(EXTREMES), 0),
        b"tRNS": rng.randbytes(rng.choice((1, 6, 300))),
    }
    chunks = [chunk(kind, extras[kind]) for kind in rng.sample(list(extras), rng.randrange(4))]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *header, rng.choice((0, 1, 7))))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _gif(rng: random.Random) -> bytes:
    def short() -> int:
        return _side(rng) & 0xFFFF

    screen = b"GIF89a" + struct.pack("<HHBBB", short(), short(), rng.choice((0x80, 0xF7, 0)), 0, 0)
    frame = b"," + struct.pack("<HHHHB", short(), short(), short(), short(), rng.choice((0, 0x40, 0x87)))
    return (
        screen + rng.randbytes(rng.choice((6, 768))) + frame + b"\x08" + b"\xff" + rng.randbytes(255) + b"\0;"
    )


def _tiff(rng: random.Random) -> bytes:
    order = rng.choice("<>")
    common = (
        254,
        256,
        257,
        258,
        259,
        262,
        266,
        273,
        277,
        278,
        279,
        284,
        317,
        322,
        323,
        324,
        325,
        330,
        338,
        339,
        347,
    )
    likely = {
        256: _side(rng), 257: _side(rng), 258: rng.choice((1, 8, 16, 32, 64)), 259: rng.choice((1, 5, 6, 7, 8, 32773)),
        262: rng.choice((0, 1, 2, 3, 5, 6)), 273: 8, 277: rng.choice((1, 3, 4, 65535)), 278: _side(rng), 279: _side(rng),
    }  # fmt: skip
    tags = sorted(
        {
            *likely,
            *rng.sample(common, rng.randrange(6)),
            *[rng.randrange(65536) for _ in range(rng.randrange(4))],
        }
    )
    entries = b""
    for tag in tags:
        kind, count = rng.choice(((3, 1), (4, 1), (rng.randrange(20), rng.choice(EXTREMES))))
        value = likely.get(tag, rng.choice(EXTREMES)) & 0xFFFFFFFF
        packed = (
            struct.pack(f"{order}HH", value & 0xFFFF, 0) if kind == 3 else struct.pack(f"{order}I", value)
        )
        entries += struct.pack(f"{order}HHI", tag, kind, count) + packed
    following = rng.choice((0, 8, 0xFFFFFFF0))
    directory = struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", following)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    return head + directory + rng.randbytes(rng.choice((0, 200, 5000)))


def _webp(rng: random.Random) -> bytes:
    size = (
        struct.pack("<I", (_side(rng) - 1) & 0xFFFFFF)[:3]
        + struct.pack("<I", (_side(rng) - 1) & 0xFFFFFF)[:3]
    )
    extended = b"VP8X" + struct.pack("<I", 10) + bytes([rng.randrange(256), 0, 0, 0]) + size
    body = rng.randbytes(rng.choice((10, 300)))
    image = (
        rng.choice((b"VP8L\x2f", b"VP8 ", b"ANMF", b"ICCP", b"ALPH"))[:4]
        + struct.pack("<I", len(body))
        + body
    )
    chunks = b"WEBP" + (extended if rng.random() < 0.7 else b"") + image
    return b"RIFF" + struct.pack("<I", rng.choice((len(chunks), *EXTREMES))) + chunks


def _bmp(rng: random.Random) -> bytes:
    depth, compression = rng.choice((1, 4, 8, 16, 24, 32, 7)), rng.choice((0, 1, 2, 3, 4, 9))
    info = struct.pack(
        "<IiiHHIIiiII", rng.choice((40, 108, 124, 12)), _side(rng) & 0x7FFFFFFF, _side(rng) & 0x7FFFFFFF, 1, depth,
        compression, rng.choice(EXTREMES), 0, 0, rng.choice(EXTREMES), 0,
    )  # fmt: skip
    return (
        b"BM"
        + struct.pack("<IHHI", rng.choice(EXTREMES), 0, 0, rng.choice((54, 1078, 2**31)))
        + info
        + rng.randbytes(2000)
    )


def _jpeg(rng: random.Random) -> bytes:
    """A valid JPEG whose frame header has another size, and which may have far too many scans."""
    image = Image.effect_noise((64, 64), 40)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", progressive=True)
    data = bytearray(buffer.getvalue())
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = struct.pack(">HH", _side(rng) & 0xFFFF, _side(rng) & 0xFFFF)
    if rng.random() < 0.5:
        scan = data.rindex(b"\xff\xda")
        return bytes(data[:-2]) + bytes(data[scan:-2]) * rng.choice((20, 80, 3000)) + b"\xff\xd9"
    return bytes(data)
