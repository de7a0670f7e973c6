"""Which pictures the GPU's JPEG decoder leaves to Pillow; a fake replaces nvImageCodec."""

import io
import logging
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rcnn_backend.operators.decode import UPRIGHT

MAX_PIXELS = 4000
DEVICE = SimpleNamespace(device_id=0, stream=SimpleNamespace(ptr=0))


def jpeg(width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, 20)).save(buffer, "JPEG")
    return buffer.getvalue()


class FakeArray:
    """Has only a shape."""

    def __init__(self, shape: tuple[int, ...], *_memory: Any) -> None:
        self.shape = shape


class FakeDecoder:
    """Returns each picture as its header describes it; fails on any batch with a picture in ``broken``."""

    def __init__(self, **_options: Any) -> None:
        self.broken: set[bytes] = set()
        self.given: dict[bytes, dict[str, Any]] = {}  # returned for some pictures instead
        self.batches: list[int] = []

    def decode(self, streams: Sequence[bytes], **_options: Any) -> list[Any]:
        self.batches.append(len(streams))
        if self.broken.intersection(streams):
            raise RuntimeError("cannot decode")
        return [self._image(data) for data in streams]

    def _image(self, data: bytes) -> SimpleNamespace:
        with Image.open(io.BytesIO(data)) as picture:
            shape = (picture.height, picture.width, 3)
        usual = {"shape": shape, "typestr": "|u1", "strides": None, "data": (1, False)}
        return SimpleNamespace(__cuda_array_interface__=usual | self.given.get(data, {}))


@pytest.fixture
def gpu_decode(load_with_fakes: Callable[[str, dict[str, Any]], ModuleType]) -> ModuleType:
    nvimgcodec = SimpleNamespace(
        Decoder=FakeDecoder,
        CodeStream=bytes,
        Image=object,
        Backend=lambda kind: kind,
        HW_GPU_ONLY=1,
        GPU_ONLY=2,
        HYBRID_CPU_GPU=3,
        DecodeParams=lambda **_options: None,
        ColorSpec=SimpleNamespace(SRGB=1),
    )
    cuda = SimpleNamespace(UnownedMemory=lambda *_arguments: None, MemoryPointer=lambda *_arguments: None)
    cupy = SimpleNamespace(cuda=cuda, ndarray=FakeArray)
    fakes = {"cupy": cupy, "nvidia": SimpleNamespace(nvimgcodec=nvimgcodec)}
    return load_with_fakes("rcnn_backend.operators.gpu.decode", fakes)


def test_an_error_costs_only_the_picture_that_has_it(
    gpu_decode: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = gpu_decode.JpegDecoder(DEVICE)
    pictures = [jpeg(30), jpeg(40), b"no picture", jpeg(50)]
    decoder._decoder.broken = {pictures[1]}
    for _ in range(2):
        pixels = decoder.decode(pictures, MAX_PIXELS)
        shapes = [None if each is None else each.shape for each in pixels]
        assert shapes == [(20, 30, 3), None, None, (20, 50, 3)]
    assert decoder._decoder.batches == [3, 1, 1, 1] * 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info
    assert str(record.exc_info[1]) == "cannot decode"


@pytest.mark.parametrize(
    "given",
    [
        {"shape": (201, 20, 3)},  # more than MAX_PIXELS
        {"shape": (0, 20, 3)},
        {"shape": (20, 30, 4)},
        {"shape": (20, 30)},
        {"typestr": "<u2"},
    ],
)
def test_what_is_not_as_its_header_says_is_left_to_pillow(
    gpu_decode: ModuleType, given: dict[str, Any]
) -> None:
    decoder = gpu_decode.JpegDecoder(DEVICE)
    decoder._decoder.given = {jpeg(30): given}
    pixels = decoder.decode([jpeg(30), jpeg(40)], MAX_PIXELS)
    assert pixels[0] is None
    assert pixels[1].shape == (20, 40, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_upright_as_pillow_does(gpu_decode: ModuleType, orientation: int) -> None:
    stored = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    picture = Image.fromarray(stored)
    expected = picture.transpose(UPRIGHT[orientation]) if orientation > 1 else picture
    np.testing.assert_array_equal(gpu_decode.turn(stored, orientation), np.asarray(expected))


def test_the_orientation_is_read_beside_broken_exif(gpu_decode: ModuleType) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for block, orientation in ((exif.tobytes(), 6), (b"Exif\0\0nonsense", 1)):
        buffer = io.BytesIO()
        Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=block)
        assert gpu_decode.orientation_for_gpu(buffer.getvalue(), MAX_PIXELS) == orientation
    assert gpu_decode.orientation_for_gpu(jpeg(30)[:-2], MAX_PIXELS) == 0
