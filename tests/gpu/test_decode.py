"""JPEGs decoded on a GPU are close to Pillow's, and an error affects only the picture that has it."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

cupy = pytest.importorskip("cupy")
pytest.importorskip("nvidia.nvimgcodec")
from rcnn_backend.devices import Gpu  # noqa: E402
from rcnn_backend.operators.decode import decode_image  # noqa: E402
from rcnn_backend.operators.gpu.decode import JpegDecoder  # noqa: E402

pytestmark = pytest.mark.gpu
MAX_PIXELS = 100_000
BOUND = 16  # levels of 255


def jpeg(height: int, width: int, mode: str = "RGB", **options: Any) -> bytes:
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


PICTURES = [
    jpeg(40, 60),
    jpeg(61, 33, subsampling=0),
    jpeg(33, 61, progressive=True),
]


def assert_pillows(device: Gpu, pixels: Sequence["cupy.ndarray"]) -> None:
    for found, data in zip(device.download(pixels), PICTURES, strict=True):
        expected = decode_image(data, MAX_PIXELS).astype(np.int16)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= BOUND


def test_pixels_are_pillows() -> None:
    device = Gpu(0)
    with device.active():
        pixels = JpegDecoder(device).decode([*PICTURES, b"no picture", jpeg(400, 300)], MAX_PIXELS)
        assert pixels[3:] == [None, None]
        assert_pillows(device, pixels[:3])


def test_pictures_are_turned_by_their_exif() -> None:
    device, decoder_input, expected = Gpu(0), [], []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        decoder_input.append(jpeg(40, 60, exif=exif.tobytes()))
        expected.append(decode_image(decoder_input[-1], MAX_PIXELS).astype(np.int16))
    with device.active():
        pixels = JpegDecoder(device).decode(decoder_input, MAX_PIXELS)
        for found, pillows in zip(device.download(pixels), expected, strict=True):
            assert found.shape == pillows.shape
            assert np.abs(found - pillows).max() <= BOUND


def test_grey_pictures_are_left_to_pillow() -> None:
    """nvImageCodec 0.9 does not write the pixels of some of them."""
    device = Gpu(0)
    with device.active():
        assert JpegDecoder(device).decode([jpeg(32, 96, "L"), jpeg(50, 50, "L")], MAX_PIXELS) == [None, None]


def test_a_batch_that_fails_is_decoded_one_by_one() -> None:
    class FailingOnBatches:
        def __init__(self, decoder: Any) -> None:
            self._decoder = decoder

        def decode(self, streams: Sequence[Any], **options: Any) -> list[Any]:
            if len(streams) > 1:
                raise RuntimeError("cannot decode the batch")
            decoded: list[Any] = self._decoder.decode(streams, **options)
            return decoded

    device = Gpu(0)
    with device.active():
        decoder = JpegDecoder(device)
        decoder._decoder = FailingOnBatches(decoder._decoder)
        assert_pillows(device, decoder.decode(PICTURES, MAX_PIXELS))
