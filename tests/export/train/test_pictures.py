"""A detector is trained on the same pixels that the server decodes, for every kind of picture file."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps
from rcnn_backend.contract.parameters import PreprocessParameters
from rcnn_backend.devices import Cpu
from rcnn_backend.operators.decode import ImageDecoder
from rcnn_export.errors import ExportError
from rcnn_export.train.coco_dataset import CocoDataset

WIDTH, HEIGHT = 32, 16
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY = RGB[:, :, 0]
PREPROCESS = PreprocessParameters(
    min_size=8,
    max_size=32,
    fixed_size_hw=None,
    image_mean=[0.5] * 3,
    image_std=[1.0] * 3,
    size_divisible=1,
    max_image_pixels=10**6,
    max_image_bytes=10**6,
)


def saved(
    kind: str, mode: str = "RGB", orientation: int = 0, more_frames: int = 0, **options: object
) -> bytes:
    """The picture as a file that Pillow writes."""
    buffer = io.BytesIO()
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    if more_frames:
        frames = [Image.new(mode, (WIDTH, HEIGHT), 200 if mode in "LP" else "navy")] * more_frames
        options |= {"save_all": True, "append_images": frames}
    Image.fromarray(RGB).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def adobe(transform: int) -> bytes:
    """A JPEG of four colours with Adobe's marker: 0 is CMYK, 2 is YCCK."""
    data = saved("JPEG", "CMYK")
    place = data.index(b"Adobe") + 11
    return data[:place] + bytes([transform]) + data[place + 1 :]


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(values: npt.NDArray[np.uint8], bits: int, colour_type: int, *, interlaced: bool = False) -> bytes:
    """A PNG of the upper ``bits`` bits of grey or colour values [H, W, C]; Pillow can write only few bit depths."""
    rows = values[None]
    if interlaced:  # Adam7
        places = (
            (0, 8, 0, 8),
            (0, 8, 4, 8),
            (4, 8, 0, 4),
            (0, 4, 2, 4),
            (2, 4, 0, 2),
            (0, 2, 1, 2),
            (1, 2, 0, 1),
        )
        rows = [values[top::down, left::right] for top, down, left, right in places]
    data = b"".join(b"\0" + pack(row, bits) for part in rows for row in part)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour_type, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def pack(row: npt.NDArray[np.uint8], bits: int) -> bytes:
    if bits == 16:
        return np.stack([row, row[::-1]], -1).tobytes()  # each value, then arbitrary lower 8 bits
    bits_of_each = np.unpackbits(row.reshape(-1, 1), axis=1)[:, :bits]
    return np.packbits(bits_of_each).tobytes()


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """The PNG with these chunks inserted after its header."""
    return data[:33] + b"".join(chunks) + data[33:]


def tiff(order: str, tags: dict[int, tuple[int, ...]], pixels: bytes) -> bytes:
    """A TIFF written by hand: all values are LONG, and the pixels start at byte 8."""
    directory, more = b"", b""
    end = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        value = struct.pack(f"{order}{len(values)}L", *values)
        if len(values) > 1:
            value, more = struct.pack(f"{order}L", end + len(more)), more + value
        directory += struct.pack(f"{order}HHL", tag, 4, len(values)) + value
    magic = b"II*\0" if order == "<" else b"MM\0*"
    start = struct.pack(f"{order}L", 8 + len(pixels))
    count = struct.pack(f"{order}H", len(tags))
    return magic + start + pixels + count + directory + bytes(4) + more


def tiled() -> bytes:
    tags = {256: (WIDTH,), 257: (HEIGHT,), 258: (8,), 259: (1,), 262: (1,), 277: (1,)}
    tags |= {322: (16,), 323: (16,), 324: (8, 8 + 256), 325: (256, 256)}
    return tiff("<", tags, GREY[:, :16].tobytes() + GREY[:, 16:].tobytes())


def big_endian_16_bits() -> bytes:
    tags = {
        256: (WIDTH,),
        257: (HEIGHT,),
        258: (16,),
        259: (1,),
        262: (1,),
        273: (8,),
        277: (1,),
        278: (HEIGHT,),
    }
    return tiff(">", tags | {279: (2 * GREY.size,)}, np.stack([GREY, GREY[::-1]], -1).tobytes())


GREY_ALPHA = np.dstack([GREY, GREY[::-1]])
RGBA = np.dstack([RGB, GREY])
BROKEN_EXIF = b"MM\0*\0\0\0\x08\0\x02" + struct.pack(">HHLHH", 0x0112, 3, 1, 6, 0)
BROKEN_EXIF += struct.pack(">HHLL", 0x9201, 10, 1, 38) + struct.pack(">Lll", 0, -1, 0)

KINDS: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: saved("JPEG"),
    "JPEG grey": lambda: saved("JPEG", "L"),
    "JPEG CMYK": lambda: adobe(0),
    "JPEG YCCK": lambda: adobe(2),
    "JPEG RGB": lambda: saved("JPEG", keep_rgb=True),
    "JPEG progressive": lambda: saved("JPEG", progressive=True),
    "JPEG 4:4:4": lambda: saved("JPEG", subsampling=0),
    "JPEG 4:2:0": lambda: saved("JPEG", subsampling="4:2:0"),
    "JPEG 4:1:1": lambda: saved("JPEG", subsampling="4:1:1"),
    "JPEG restarts": lambda: saved("JPEG", restart_marker_blocks=1),
    "JPEG profile and comment": lambda: saved("JPEG", icc_profile=bytes(200_000), comment=b"c" * 60_000),
    "JPEG with a trailer": lambda: saved("JPEG") + b"\xff\xd9 and a film",
    "JPEG broken EXIF": lambda: saved("JPEG", exif=b"Exif\0\0" + BROKEN_EXIF),
    **{f"JPEG EXIF {each}": lambda each=each: saved("JPEG", orientation=each) for each in range(1, 9)},
    "MPO": lambda: saved("MPO", more_frames=1),
    "PNG": lambda: saved("PNG"),
    "PNG 1 bit": lambda: png(GREY[:, :, None], 1, 0),
    "PNG 2 bits": lambda: png(GREY[:, :, None], 2, 0),
    "PNG 4 bits": lambda: png(GREY[:, :, None], 4, 0),
    "PNG 8 bits": lambda: png(GREY[:, :, None], 8, 0),
    "PNG 16 bits": lambda: png(GREY[:, :, None], 16, 0),
    "PNG grey and alpha": lambda: png(GREY_ALPHA, 8, 4),
    "PNG grey and alpha 16 bits": lambda: png(GREY_ALPHA, 16, 4),
    "PNG palette": lambda: saved("PNG", "P"),
    "PNG palette 4 bits": lambda: saved("PNG", "P", bits=4),
    "PNG palette with transparency": lambda: saved("PNG", "P", transparency=bytes(range(256))),
    "PNG RGB 16 bits": lambda: png(RGB, 16, 2),
    "PNG RGBA": lambda: png(RGBA, 8, 6),
    "PNG RGBA 16 bits": lambda: png(RGBA, 16, 6),
    "PNG interlaced": lambda: png(RGB, 8, 2, interlaced=True),
    "PNG text": lambda: with_chunks(saved("PNG"), chunk(b"tEXt", b"Comment\0" + b"t" * 1000)),
    "PNG profile": lambda: saved("PNG", icc_profile=bytes(1000)),
    "PNG EXIF 5": lambda: saved("PNG", orientation=5),
    "PNG animated": lambda: saved("PNG", more_frames=2),
    "WebP lossy": lambda: saved("WEBP"),
    "WebP lossless": lambda: saved("WEBP", lossless=True),
    "WebP alpha": lambda: saved("WEBP", "RGBA", lossless=True),
    "WebP animated": lambda: saved("WEBP", more_frames=2, lossless=True),
    "WebP EXIF 6": lambda: saved("WEBP", orientation=6, lossless=True),
    "TIFF": lambda: saved("TIFF"),
    "TIFF LZW": lambda: saved("TIFF", compression="tiff_lzw"),
    "TIFF deflate": lambda: saved("TIFF", compression="tiff_adobe_deflate"),
    "TIFF JPEG": lambda: saved("TIFF", compression="jpeg"),
    "TIFF fax": lambda: saved("TIFF", "1", compression="group4"),
    "TIFF 1 bit": lambda: saved("TIFF", "1"),
    "TIFF palette": lambda: saved("TIFF", "P"),
    "TIFF CMYK": lambda: saved("TIFF", "CMYK"),
    "TIFF LAB": lambda: saved("TIFF", "LAB"),
    "TIFF RGBA": lambda: saved("TIFF", "RGBA"),
    "TIFF tiled": tiled,
    "TIFF 16 bits": big_endian_16_bits,
    "TIFF pages": lambda: saved("TIFF", more_frames=2),
    "TIFF BigTIFF": lambda: saved("TIFF", big_tiff=True),
    "TIFF EXIF 7": lambda: saved("TIFF", orientation=7),
    "TIFF LZW EXIF 8": lambda: saved("TIFF", orientation=8, compression="tiff_lzw"),
    "GIF": lambda: saved("GIF", "P"),
    "GIF animated": lambda: saved("GIF", "P", more_frames=2),
    "GIF transparent": lambda: saved("GIF", "P", transparency=3),
    "GIF comment": lambda: saved("GIF", "P", comment=b"c" * 1000),
    "BMP 1 bit": lambda: saved("BMP", "1"),
    "BMP 8 bits": lambda: saved("BMP", "L"),
    "BMP palette": lambda: saved("BMP", "P"),
    "BMP 24 bits": lambda: saved("BMP"),
    "BMP 32 bits": lambda: saved("BMP", "RGBA"),
}  # fmt: skip


def as_pillow_sees_it(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as picture:
        upright = (
            picture.transpose(Image.Transpose.ROTATE_270)
            if BROKEN_EXIF in data
            else ImageOps.exif_transpose(picture)
        )
        if upright.mode.startswith("I;16"):  # convert() would clip them at 255
            return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        return np.asarray(upright.convert("RGB"))


def trained_on(folder: Path, data: bytes, size: tuple[int, int] = (WIDTH, HEIGHT)) -> npt.NDArray[np.uint8]:
    """The pixels [H, W, 3] that rcnn-train reads from a picture whose annotated size is ``size``."""
    (folder / "picture").write_bytes(data)
    content = {
        "images": [{"id": 1, "file_name": "picture", "width": size[0], "height": size[1]}],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    picture, _ = CocoDataset(folder / "annotations.json", folder)[0]
    return picture.permute(1, 2, 0).numpy()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", KINDS)
def test_training_and_server_see_the_same_pixels(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind]()
    expected = as_pillow_sees_it(data)
    (served,) = ImageDecoder(PREPROCESS, Cpu()).decode_requests([[data]])
    assert isinstance(served, list), served
    np.testing.assert_array_equal(served[0], expected)
    np.testing.assert_array_equal(trained_on(tmp_path, data, expected.shape[1::-1]), expected)


def test_16_bits_are_their_upper_8(tmp_path: Path) -> None:
    for data in (KINDS["PNG 16 bits"](), KINDS["TIFF 16 bits"]()):
        np.testing.assert_array_equal(trained_on(tmp_path, data), np.repeat(GREY[:, :, None], 3, axis=2))
    for data in (KINDS["PNG RGB 16 bits"](), KINDS["PNG RGBA 16 bits"]()):
        np.testing.assert_array_equal(trained_on(tmp_path, data), RGB)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the image is empty"),
        (b"no picture", "not an image of a known format"),
        (saved("JPEG")[:200], "damaged or cut short"),
        (saved("PNG")[:-60], "damaged or cut short"),
        (saved("PPM"), "not an image of a known format"),
    ],
)  # fmt: skip
def test_a_refused_picture_is_named_in_the_servers_words(tmp_path: Path, data: bytes, reason: str) -> None:
    (refusal,) = ImageDecoder(PREPROCESS, Cpu()).decode_requests([[data]])
    with pytest.raises(
        ExportError, match=f"^cannot read the picture {tmp_path}/picture: .*{reason}"
    ) as caught:
        trained_on(tmp_path, data)
    assert str(caught.value).endswith(str(refusal))
