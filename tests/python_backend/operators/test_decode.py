"""Every kind of picture file gives RGB pixels or an error that says what is wrong with it."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from rcnn_backend.contract.parameters import PreprocessParameters
from rcnn_backend.devices import Cpu
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.decode import ImageDecoder, decode_image, from_base64

LIMIT = 50_000_000


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB") -> Image.Image:
    pixels = np.arange(24 * 32 * 3, dtype=np.uint32).reshape(24, 32, 3) % 256
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "PNG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"),
        ("RGB", "BMP"), ("RGB", "TIFF"), ("CMYK", "TIFF"), ("P", "GIF"),
    ],
)  # fmt: skip
def test_lossless_formats_give_pillows_pixels(mode: str, kind: str) -> None:
    image = gradient(mode)
    decoded = decode_image(encode(image, kind), LIMIT)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP")]
)
def test_lossy_formats_decode(mode: str, kind: str) -> None:
    assert decode_image(encode(gradient(mode), kind), LIMIT).shape == (24, 32, 3)


def test_one_pixel() -> None:
    np.testing.assert_array_equal(
        decode_image(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), LIMIT), [[[1, 2, 3]]]
    )


def test_16_bit_grey_keeps_the_upper_8_bits() -> None:
    deep = np.array([[0, 255, 256, 65535]], np.uint16)
    decoded = decode_image(encode(Image.fromarray(deep), "PNG"), LIMIT)
    np.testing.assert_array_equal(decoded[0], [[0] * 3, [0] * 3, [1] * 3, [255] * 3])


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees
    data = encode(gradient(), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data, LIMIT), np.rot90(np.asarray(gradient()), -1))


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data, LIMIT)[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, I am no picture", "not an image of a known format"),
        (encode(gradient(), "JPEG")[:300], "damaged or cut short"),
        (encode(gradient(), "PNG")[:-40], "damaged or cut short"),
        (encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "32-bit pixels"),
    ],
)
def test_bad_pictures_say_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        decode_image(data, LIMIT)


def test_a_claimed_size_is_refused_before_decoding() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(InvalidInputError, match="30000x30000 pixels, more than the 50000000"):
        decode_image(bomb, LIMIT)


def progressive_jpeg(num_scans: int) -> bytes:
    data = encode(gradient(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    scans = data.count(b"\xff\xda")
    return data[:-2] + last * (num_scans - scans) + data[-2:]


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    assert decode_image(progressive_jpeg(100), LIMIT).shape == (24, 32, 3)
    with pytest.raises(InvalidInputError, match="more than 100 scans") as caught:
        decode_image(progressive_jpeg(101), LIMIT)
    assert caught.value.reason == "too_many_scans"
    with_a_film_behind_it = progressive_jpeg(10) + b"\xff\xda" * 1000
    assert decode_image(with_a_film_behind_it, LIMIT).shape == (24, 32, 3)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "AVIF", "JPEG2000", "EPS"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(InvalidInputError, match="not an image of a known format") as caught:
        decode_image(encode(gradient(), kind), LIMIT)
    assert caught.value.reason == "unknown_format"


def test_several_frames_or_pages_give_the_first() -> None:
    frames = [gradient(), Image.new("RGB", (32, 24), "blue")]
    for kind in ("PNG", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(decode_image(data, LIMIT), np.asarray(frames[0]))


def test_16_bits_of_colour_keep_the_upper_8() -> None:
    row = b"\0" + struct.pack(">6H", 0, 255, 256, 65535, 4096, 511)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    np.testing.assert_array_equal(decode_image(data, LIMIT), [[[0, 0, 1], [255, 16, 1]]])


def test_a_metadata_bomb_is_survived() -> None:
    body = zlib.compress(bytes(200_000_000))
    chunk = b"name\0\0" + body
    picture = encode(gradient(), "PNG")
    bomb = struct.pack(">I", len(chunk)) + b"iCCP" + chunk + struct.pack(">I", zlib.crc32(b"iCCP" + chunk))
    try:
        assert decode_image(picture[:33] + bomb + picture[33:], LIMIT).shape == (24, 32, 3)
    except InvalidInputError as error:
        assert error.reason == "damaged"


def limited(**limits: int) -> PreprocessParameters:
    values = {
        "min_size": 8,
        "max_size": 32,
        "fixed_size_hw": None,
        "image_mean": [0.5] * 3,
        "image_std": [1.0] * 3,
    }
    return PreprocessParameters(**values, size_divisible=1, max_image_pixels=LIMIT, **limits)


def test_too_many_bytes_are_refused() -> None:
    limits = limited(max_image_bytes=2000)
    small, large = encode(gradient(), "JPEG"), encode(gradient(), "BMP")
    assert len(small) < 2000 < len(large)
    good, refused = ImageDecoder(limits, Cpu()).decode_requests([[small], [large]])
    assert isinstance(good, list)
    assert isinstance(refused, InvalidInputError) and refused.reason == "too_many_bytes"
    assert f"the image has {len(large)} bytes, more than the 2000" in str(refused)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_base64_is_a_picture_too(kind: str) -> None:
    data = encode(gradient(), kind)
    text = base64.b64encode(data)
    assert from_base64(text) == data
    assert from_base64(b"data:image/%s;base64,%s" % (kind.lower().encode(), text)) == data
    assert from_base64(data) == data


def test_a_text_that_is_cut_short_is_no_picture() -> None:
    text = base64.b64encode(encode(gradient(), "PNG"))
    whole, cut = ImageDecoder(limited(), Cpu()).read_requests(
        [{"image": np.array([[each]], dtype=object)} for each in (text, text[:-1])]
    )
    np.testing.assert_array_equal(whole[0], np.asarray(gradient()))
    assert "not an image of a known format" in str(cut)
