"""Any exception that a picture raises becomes the error of that picture and does not end a stream."""

import asyncio
import io
import os
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image
from rcnn_client import BatchError, Detector, InvalidImageError, aio
from rcnn_client._images import encode_image
from rcnn_client._orientation import upright_size

# Orientation 6, and the rational -1/0, which Pillow can read but not write.
BROKEN_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + struct.pack(">HHLHH", 0x0112, 3, 1, 6, 0)
BROKEN_EXIF += struct.pack(">HHLL", 0x9201, 10, 1, 38) + struct.pack(">Lll", 0, -1, 0)


class Raising(Image.Image):
    """A picture of a class of the caller's own; loading its pixels raises an exception."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._size, self._mode, self._error = (4, 4), "RGB", error

    def load(self):
        raise self._error


class RaisingPath:
    def __fspath__(self):
        raise KeyError("no path")


class BytesPath:
    def __fspath__(self):
        return b"missing\xff.jpg"


class RaisingArray(np.ndarray):
    def __getitem__(self, index):
        raise KeyError(index)


def closed(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "closed.png")
    image = Image.open(tmp_path / "closed.png")
    image.close()
    return image


def faulty(tmp_path):
    errors = [
        struct.error("too short"),
        MemoryError(),
        ZeroDivisionError("by zero"),
        RecursionError(),
        KeyError(40965),
    ]
    errors += [
        AttributeError("no seek"),
        AssertionError(),
        OSError("truncated"),
        EOFError(),
        SyntaxError("broken"),
    ]
    paths = [RaisingPath(), BytesPath(), tmp_path, tmp_path / "a\0b", "x" * 5000]
    arrays = [np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
    return [
        *map(Raising, errors),
        closed(tmp_path),
        *paths,
        *arrays,
        None,
        3,
        SimpleNamespace(shape=(4, 4, 3)),
    ]


os.PathLike.register(RaisingPath)
os.PathLike.register(BytesPath)


def test_a_stream_survives_every_picture(server, png, tmp_path):
    bad = faulty(tmp_path)
    images = [each for image in bad for each in (image, png(7))]
    with Detector(server.url) as detector:
        answers = [result.error or result.detections.labels[0] for result in detector.detect_stream(images)]
    assert answers[1::2] == [7] * len(bad)
    assert {type(error) for error in answers[::2]} == {InvalidImageError}


def test_the_asyncio_stream_survives_every_picture(server, png, tmp_path):
    bad = faulty(tmp_path)

    async def run():
        async with aio.Detector(server.url) as detector:
            stream = detector.detect_stream([each for image in bad for each in (image, png(7))])
            answers = [result.error or result.detections.labels[0] async for result in stream]
            with pytest.raises(InvalidImageError, match="KeyError"):
                await detector.detect(Raising(KeyError("x")))
            with pytest.raises(BatchError) as caught:
                await detector.detect_batch([Raising(MemoryError()), png(3)])
            return answers, caught.value

    answers, error = asyncio.run(run())
    assert answers[1::2] == [7] * len(bad)
    assert {type(each) for each in answers[::2]} == {InvalidImageError}
    assert list(error.errors) == [0] and error.results[1].labels[0] == 3


def test_a_batch_names_each_fault(server, png):
    images = [Raising(struct.error("too short")), png(3), Raising(MemoryError())]
    with Detector(server.url) as detector, pytest.raises(BatchError) as caught:
        detector.detect_batch(images)
    assert caught.value.results[1].labels[0] == 3
    first, third = caught.value.errors[0], caught.value.errors[2]
    assert "cannot be encoded: error: too short" in str(first) and "MemoryError" in str(third)


def test_an_array_of_a_subclass_is_sent_as_its_values(server):
    server.add_pixels_model()
    values = np.full((30, 40, 3), 9, np.uint8)
    masked = np.ma.masked_array(values, mask=True)
    with Detector(server.url) as detector:
        results = list(detector.detect_stream([masked, values.view(RaisingArray)]))
    assert [result.detections.labels[0] for result in results] == [9, 9]


def turned_photo(kind, exif=BROKEN_EXIF):
    buffer = io.BytesIO()
    options = (
        {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    )
    Image.new("RGB", (40, 30), (7, 0, 0)).save(buffer, kind, exif=exif, **options)
    return Image.open(buffer)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_beside_an_orientation(kind):
    assert Image.open(io.BytesIO(encode_image(turned_photo(kind)))).size == (30, 40)
    assert upright_size(turned_photo(kind)) == (30, 40)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about tags that it skips
@pytest.mark.parametrize("orientation", [b"\0\0", b"\0\x09", b"\xff\xff"])
@pytest.mark.parametrize("length", [20, 24, 28, 64])
def test_an_orientation_that_cannot_be_read(orientation, length):
    exif = BROKEN_EXIF.replace(b"\0\6\0\0", orientation + b"\0\0")[:length]
    photo = turned_photo("PNG", exif)
    assert Image.open(io.BytesIO(encode_image(photo))).size == upright_size(photo) == (40, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    upright = (30, 40) if orientation > 4 else (40, 30)
    assert upright_size(turned_photo("TIFF", exif)) == upright
    photo = turned_photo("TIFF", exif)
    assert Image.open(io.BytesIO(encode_image(photo))).size == upright
