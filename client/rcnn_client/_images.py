"""Turns any accepted picture into the data that is sent: encoded bytes, or pixels."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._errors import InvalidImageError, RcnnError
from ._orientation import orientation, upright, upright_size
from ._picture_files import open_picture

# An array must be uint8. This is checked at run time, because OpenCV's type stubs do not say it of its frames.
ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

# A protobuf message holds at most 2 GiB; the rest of the request takes far less than 1 MiB.
MAX_ENCODED_BYTES = 2**31 - 2**20


def image_name(image: Any, name: str = "image") -> str:
    """What error messages call the picture: its path if it has one, otherwise `name`."""
    try:
        return os.fsdecode(image) if isinstance(image, str | os.PathLike) else name
    except Exception:  # a path of the caller's own class
        return name


@contextlib.contextmanager
def faults_of(name: str) -> Iterator[None]:
    """Turn every exception into an `InvalidImageError`: Pillow, NumPy and callers' classes may raise any kind."""
    try:
        yield
    except RcnnError:
        raise
    except Exception as error:
        raise InvalidImageError(f"{name}: cannot be read: {_said(error)}") from error


def _said(error: Exception) -> str:
    """The message of the exception, with its type where the message alone is not clear."""
    if isinstance(error, Image.DecompressionBombError):
        return (
            "it has more than twice PIL.Image.MAX_IMAGE_PIXELS, the limit above which Pillow decodes no picture; "
            "raise that limit if you trust the picture, or pass its pixels as an array"
        )
    if isinstance(error, OSError | ValueError) and str(error):
        return getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def encode_image(image: ImageInput) -> bytes:
    """Encode a picture without loss: files and bytes stay as they are; pixels become a BMP, or a PNG if
    BMP does not support their mode.

    BMP is fast because it only copies: an 800x1333 picture is 3.2 MB and takes 2 to 8 ms to encode, and the
    same to decode. PNG at compression level 1 takes 90 to 130 ms and 30 ms, for about half of the bytes.

    Args:
        image: path of an encoded picture, its bytes, a `PIL.Image` (its EXIF orientation is applied), or a
            uint8 array [height, width, 3] in RGB order or [height, width] in grey.

    Raises:
        InvalidImageError: the file cannot be read, the array has another type or shape, or neither BMP nor PNG
            supports the picture's mode.
    """
    if isinstance(image, str | os.PathLike):
        data = _read_file(Path(os.fsdecode(image)))
    elif isinstance(image, bytes):
        data = image
    elif isinstance(image, Image.Image):
        data = _encode_pil(image)
    elif isinstance(image, np.ndarray):
        data = _encode_array(image)
    else:
        raise InvalidImageError(
            f"got a {type(image).__name__}, expected a path, bytes, a PIL.Image or a uint8 array of "
            "shape [height, width, 3]; detect_batch takes a list of them"
        )
    _check_size(len(data), image_name(image))
    return data


def _read_file(path: Path) -> bytes:
    with faults_of(str(path)):
        _check_size(path.stat().st_size, str(path))
        return path.read_bytes()


def _check_size(byte_size: int, name: str) -> None:
    if byte_size > MAX_ENCODED_BYTES:
        raise InvalidImageError(f"{name}: {byte_size} bytes; one request carries at most {MAX_ENCODED_BYTES}")


def _encode_pil(image: Image.Image) -> bytes:
    try:
        image = upright(image)
        if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            image = image.convert("RGB")
        if image.mode == "I":
            image = Image.fromarray(_to_16_bits(image))
        buffer = io.BytesIO()
        if image.mode in ("RGB", "L"):
            image.save(buffer, "BMP")
        else:
            image.save(buffer, "PNG", compress_level=1)
    except Exception as error:  # Pillow raises many kinds, depending on format and fault
        raise InvalidImageError(
            f"image: a PIL.Image of mode {image.mode} and size {image.size} cannot be encoded: {_said(error)}; "
            'is it complete, and does image.convert("RGB") work?'
        ) from error
    return buffer.getvalue()


def _encode_array(array: NDArray[np.uint8]) -> bytes:
    return _encode_pil(Image.fromarray(_check_array(array)))


def open_image(image: ImageInput) -> Image.Image:
    """A picture that `encode_image` takes, as a loaded `PIL.Image`; EXIF orientation is not yet applied.

    Raises:
        InvalidImageError: it cannot be read, or Pillow cannot decode it.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return Image.fromarray(_check_array(image))
    with faults_of(image_name(image)):
        opened = open_picture(encode_image(image))
        opened.load()
    return opened


def decode_pixels(image: ImageInput) -> NDArray[np.uint8]:
    """A picture that `encode_image` takes, as upright RGB [height, width, 3] or grey [height, width].

    It is decoded as on the server: alpha is dropped, and 16 bits keep their upper 8.

    Raises:
        Exception: of many kinds, if it cannot be decoded; see `faults_of`.
    """
    if isinstance(image, np.ndarray):
        return rgb_pixels(image)
    opened = upright(open_image(image))
    if opened.mode == "F":
        raise ValueError(
            "it has 32-bit pixels (mode F), whose range is not known: convert it to 8 or 16 bits"
        )
    if opened.mode.startswith("I"):
        values = _to_16_bits(opened) if opened.mode == "I" else np.asarray(opened)
        return (values >> 8).astype(np.uint8)
    return np.asarray(opened if opened.mode in ("L", "RGB") else opened.convert("RGB"))


def _to_16_bits(image: Image.Image) -> NDArray[np.uint16]:
    """The values of a picture of mode I."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() >= 2**16:
        raise ValueError("its 32-bit values do not fit into 16 bits")
    return values.astype(np.uint16)


def encoded_size_hw(encoded: bytes) -> tuple[int, int]:
    """Height and width of an encoded picture, upright; its pixels are not decoded."""
    with open_picture(encoded) as image:
        width, height = upright_size(image)
    return height, width


def encoded_orientation(encoded: bytes) -> int:
    """The orientation of an encoded picture, 1 to 8; its pixels are not decoded."""
    with open_picture(encoded) as image:
        return orientation(image)


def rgb_pixels(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The array as RGB [height, width, 3]; a view of it, which may not be contiguous.

    Raises:
        InvalidImageError: it is not a uint8 array [height, width, 3] or [height, width], or it is too large.
    """
    pixels = _check_array(array)
    if pixels.ndim == 2:
        pixels = np.broadcast_to(pixels[:, :, None], (*pixels.shape, 3))
    _check_size(pixels.nbytes, "image")
    return pixels


def _check_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    array = np.asarray(array)  # the plain values of a subclass, such as a masked array
    pixels = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    is_picture = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if array.dtype != np.uint8 or not is_picture or not array.size:
        raise InvalidImageError(
            f"image: got an array of shape {array.shape} and dtype {array.dtype}, expected uint8 of shape "
            "[height, width, 3] in RGB order or [height, width]; pass an encoded picture as bytes"
        )
    return pixels
