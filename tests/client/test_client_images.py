"""Every accepted kind of picture reaches the server losslessly; every other kind is refused with a clear message."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from rcnn_client import InvalidImageError
from rcnn_client._images import encode_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (37, 53, 3), np.uint8)


def decode(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded))


@pytest.mark.parametrize(
    "array",
    [
        RGB,
        RGB[:, :, 0],
        RGB[:, :, :1],
        RGB[::2, ::-3],
        np.asfortranarray(RGB),
        RGB[:1, :1],
    ],
    ids=["rgb", "grey", "grey with an axis", "strided", "fortran order", "one pixel"],
)
def test_arrays(array):
    decoded = np.asarray(decode(encode_image(array)).convert("RGB"))
    assert np.array_equal(
        decoded, np.broadcast_to(array if array.ndim == 3 else array[:, :, None], decoded.shape)
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pil_modes(mode):
    image = Image.fromarray(RGB).convert(mode)
    decoded = decode(encode_image(image))
    assert np.array_equal(np.asarray(decoded.convert("RGB")), np.asarray(image.convert("RGB")))


def test_pil_16_bit():
    values = RNG.integers(0, 65536, (20, 30), np.uint16)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        assert np.array_equal(np.asarray(decode(encode_image(image))), values)


def test_pil_transparency_survives():
    image = Image.fromarray(RGB).convert("RGBA")
    image.putalpha(77)
    assert decode(encode_image(image)).getchannel("A").getextrema() == (77, 77)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pil_exif_orientation_is_applied_once(orientation, mode):
    upright = Image.fromarray(RGB).convert(mode)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)

    decoded = decode(encode_image(decode(buffer.getvalue())))
    assert decoded.getexif().get(ExifTags.Base.Orientation, 1) == 1
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


def test_pil_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    decoded = decode(encode_image(decode(buffer.getvalue())))
    assert getattr(decoded, "n_frames", 1) == 1
    assert decoded.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("array", "given"),
    [
        (RGB / 255, r"shape \(37, 53, 3\) and dtype float64"),
        (RGB.transpose(2, 0, 1), r"shape \(3, 37, 53\)"),
        (RGB[None], r"shape \(1, 37, 53, 3\)"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\)"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (np.frombuffer(b"encoded", np.uint8), r"shape \(7,\)"),
    ],
)
def test_other_arrays_are_refused(array, given):
    with pytest.raises(InvalidImageError, match=f"{given}.*expected uint8 of shape"):
        encode_image(array)


@pytest.mark.parametrize("thing", [None, 3, bytearray(b"x"), io.BytesIO(b"x")])
def test_other_types_are_refused(thing):
    with pytest.raises(InvalidImageError, match=f"got a {type(thing).__name__}, expected a path"):
        encode_image(thing)


def test_pil_pictures_that_cannot_be_encoded(png):
    cut_short = decode(png(1, size=(640, 480))[:-60])
    for image in (Image.new("F", (4, 4)), Image.new("I", (4, 4), 70000), Image.new("RGB", (0, 4)), cut_short):
        with pytest.raises(InvalidImageError, match=rf"mode {image.mode} and size .*cannot be encoded"):
            encode_image(image)


@pytest.mark.parametrize(
    ("name", "reason"), [("missing.jpg", "No such file"), (".", "Is a directory"), ("a\0b", "null byte")]
)
def test_files_that_cannot_be_read(tmp_path, name, reason):
    with pytest.raises(InvalidImageError, match=reason):
        encode_image(tmp_path / name)


def test_a_file_larger_than_a_request(tmp_path):
    path: Path = tmp_path / "video.mp4"
    with path.open("wb") as file:
        file.truncate(2**31)  # a sparse file: it takes no disk space and is never read
    with pytest.raises(InvalidImageError, match=r"video\.mp4: 2147483648 bytes; one request carries at most"):
        encode_image(path)
