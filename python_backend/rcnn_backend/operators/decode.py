"""A picture as sent, encoded or not -> RGB pixels. Every refusal has a clear message."""

import base64
import binascii
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from rcnn_backend.contract.parameters import PreprocessParameters
from rcnn_backend.devices import Array, Device, Gpu
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.picture_files import FORMATS, open_picture
from rcnn_backend.operators.picture_metadata import START_OF_SCAN, jpeg_segments
from rcnn_backend.operators.sizes import resized_size_hw

if TYPE_CHECKING:
    from rcnn_backend.operators.gpu.decode import JpegDecoder

# A small JPEG that fills in a large picture scan by scan can keep a decoder busy for hours.
MAX_JPEG_SCANS = 100

# The transposition that turns a stored picture upright, by EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The first bytes of each format in base64. No file of these formats begins with such bytes itself.
BASE64_STARTS = (
    b"/9j/",
    b"iVBORw0KGgo",
    b"UklGR",
    b"SUkqA",
    b"SUkrA",
    b"TU0AK",
    b"R0lGOD",
    *(b"Qk%d" % i for i in range(4)),
)


def from_base64(data: bytes) -> bytes:
    """Decodes a picture file in base64, alone or in a data URL, as it is sent in JSON. Returns other bytes unchanged."""
    text = data.partition(b";base64,")[2] if data.startswith(b"data:") else data
    if not text.startswith(BASE64_STARTS):
        return data
    try:
        return base64.b64decode(text)
    except binascii.Error:
        return data


def decode_image(data: bytes, max_image_pixels: int) -> npt.NDArray[np.uint8]:
    """Decodes a JPEG, PNG, WebP, TIFF, GIF or BMP to uint8 RGB [H, W, 3].

    EXIF orientation is applied, alpha is dropped, 16-bit values keep their upper 8 bits,
    and only the first of several frames or pages is used. All other metadata is skipped, damaged or not.

    Raises:
        InvalidInputError: the bytes are not a picture, or the picture is damaged, has more than
            ``max_image_pixels`` pixels, or is a JPEG of more than MAX_JPEG_SCANS scans.
    """
    if not data:
        raise InvalidInputError(
            "the image is empty (0 bytes): send the bytes of a JPEG, PNG or other image file", "empty"
        )
    _check_num_scans(data)
    try:
        with open_picture(data) as image:
            width, height = image.size
            _check_num_pixels(width, height, max_image_pixels)
            turn = UPRIGHT.get(image.info["orientation"])
            upright = image if turn is None else image.transpose(turn)
            if upright.mode.startswith("I;16"):
                return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
            if upright.mode in ("I", "F"):
                raise InvalidInputError(
                    f"the {image.format} has 32-bit pixels (mode {upright.mode}), whose range is not known: "
                    "convert it to 8 or 16 bits",
                    "unknown_range",
                )
            return np.asarray(upright.convert("RGB"))
    except InvalidInputError:
        raise
    except UnidentifiedImageError as error:
        if error.__cause__:
            raise _damaged(error.__cause__) from error
        raise InvalidInputError(
            f"the {len(data)} bytes are not an image of a known format (they start with {data[:8].hex(' ')}): "
            f"send the bytes of a picture file, one of {', '.join(FORMATS)}",
            "unknown_format",
        ) from None
    except Exception as error:  # decoders raise many types on damaged files
        raise _damaged(error) from error


def _damaged(error: BaseException) -> InvalidInputError:
    return InvalidInputError(
        f"the image is damaged or cut short: {str(error) or type(error).__name__}", "damaged"
    )


def _check_num_pixels(width: int, height: int, max_image_pixels: int) -> None:
    if width * height > max_image_pixels:
        raise InvalidInputError(
            f"the image claims {width}x{height} pixels, more than the {max_image_pixels} this model "
            "accepts: send a smaller one, or raise max_image_pixels in the preprocess config",
            "too_many_pixels",
        )


def _check_num_bytes(data: bytes, max_image_bytes: int) -> None:
    if len(data) > max_image_bytes:
        raise InvalidInputError(
            f"the image has {len(data)} bytes, more than the {max_image_bytes} this model accepts: "
            "compress it, or raise max_image_bytes in the preprocess config",
            "too_many_bytes",
        )


def _check_num_scans(data: bytes) -> None:
    if not data.startswith(b"\xff\xd8") or _most_scans(data) <= MAX_JPEG_SCANS:
        return
    scans = 0
    for marker, _, _ in jpeg_segments(data):
        scans += marker == START_OF_SCAN
        if scans > MAX_JPEG_SCANS:
            raise InvalidInputError(
                f"the JPEG has more than {MAX_JPEG_SCANS} scans, but usual ones have at most 10: save it again",
                "too_many_scans",
            )


def _most_scans(data: bytes) -> int:
    """An upper bound of the number of scans. This takes a quarter of the time of ``data.count``."""
    values = np.frombuffer(data, np.uint8)
    return int(np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == START_OF_SCAN)))


class ImageDecoder:
    """Decodes the pictures of several requests to pixels on a step's device.

    On a GPU, JPEGs are decoded there if nvImageCodec is installed; Pillow decodes everything else.
    """

    def __init__(self, parameters: PreprocessParameters, device: Device) -> None:
        self._parameters = parameters
        self._device = device
        self._jpeg_decoder = _open_jpeg_decoder(device)

    def read_requests(self, requests: Sequence[Mapping[str, Array]]) -> list[list[Array] | InvalidInputError]:
        """Like ``decode_requests``, for requests that have one of two tensors.

        Args:
            requests: either ``image``, bytes [B, 1], encoded and possibly in base64, or ``pixels``, uint8 RGB
                [B, h, w, 3].
        """
        encoded = [
            [from_base64(data) for data in tensors["image"].reshape(-1).tolist()]
            if tensors.keys() == {"image"}
            else []
            for tensors in requests
        ]
        decoded = self.decode_requests(encoded)
        return [
            images if tensors.keys() == {"image"} else self._read_pixels(tensors)
            for tensors, images in zip(requests, decoded, strict=True)
        ]

    def _read_pixels(self, tensors: Mapping[str, Array]) -> list[Array] | InvalidInputError:
        if tensors.keys() != {"pixels"}:
            return InvalidInputError(
                f"the request has {' and '.join(sorted(tensors)) or 'neither input'}: send either image, "
                "encoded, or pixels, uint8 RGB [height, width, 3]",
                "wrong_inputs",
            )
        images: list[Array] = list(tensors["pixels"])
        height, width = tensors["pixels"].shape[1:3]  # one size for all pictures of a request
        try:
            if not height * width:
                raise InvalidInputError(
                    f"the image is empty ({width}x{height} pixels): send at least one pixel", "empty"
                )
            _check_num_pixels(width, height, self._parameters.max_image_pixels)
            resized_size_hw((height, width), self._parameters)  # refuses what cannot be resized
        except InvalidInputError as error:
            return error
        return images

    def decode_requests(self, requests: Sequence[Sequence[bytes]]) -> list[list[Array] | InvalidInputError]:
        """The pictures of each request, uint8 RGB [h, w, 3], or the error of its first bad picture."""
        if self._jpeg_decoder:
            everything = [
                data if self._is_for_decoder(data) else b"" for request in requests for data in request
            ]
            decoded = iter(self._jpeg_decoder.decode(everything, self._parameters.max_image_pixels))
        else:
            decoded = itertools.repeat(None)
        return [self._finish(request, list(itertools.islice(decoded, len(request)))) for request in requests]

    def _is_for_decoder(self, data: bytes) -> bool:
        try:
            _check_num_bytes(data, self._parameters.max_image_bytes)
            _check_num_scans(data)
        except InvalidInputError:  # _finish reports it
            return False
        return True

    def _finish(
        self, request: Sequence[bytes], decoded: list[Array | None]
    ) -> list[Array] | InvalidInputError:
        images = []
        for index, (data, image) in enumerate(zip(request, decoded, strict=True)):
            try:
                if image is None:
                    _check_num_bytes(data, self._parameters.max_image_bytes)
                    image = self._device.upload(decode_image(data, self._parameters.max_image_pixels))
                resized_size_hw(image.shape[:2], self._parameters)  # refuses what cannot be resized
                images.append(image)
            except InvalidInputError as error:
                which = f"image {index} of the {len(request)} in this request: " if len(request) > 1 else ""
                return InvalidInputError(f"{which}{error}", error.reason)
        return images


def _open_jpeg_decoder(device: Device) -> "JpegDecoder | None":
    if not isinstance(device, Gpu):
        return None
    try:
        from rcnn_backend.operators.gpu.decode import JpegDecoder
    except ImportError:
        return None
    return JpegDecoder(device)
