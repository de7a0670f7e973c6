"""JPEG -> pixels on a GPU with nvImageCodec (nvJPEG); pictures that it does not support are left to Pillow."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cupy
import numpy as np
from nvidia import nvimgcodec

from rcnn_backend.devices import Gpu
from rcnn_backend.operators.picture_files import open_picture
from rcnn_backend.operators.picture_metadata import without_metadata

logger = logging.getLogger(__name__)

END_OF_IMAGE = b"\xff\xd9"
MAX_TRAILER_BYTES = 1 << 10  # after the end of a complete JPEG


class JpegDecoder:
    """nvImageCodec on the GPU and the stream of ``device``.

    Chroma is interpolated as in libjpeg. The pixels differ from libjpeg's by at most a few of 255
    levels, because libjpeg's inverse cosine transform rounds in other places.
    """

    def __init__(self, device: Gpu) -> None:
        on_gpu = (nvimgcodec.HW_GPU_ONLY, nvimgcodec.GPU_ONLY, nvimgcodec.HYBRID_CPU_GPU)
        self._decoder = nvimgcodec.Decoder(
            device_id=device.device_id,
            backends=[nvimgcodec.Backend(kind) for kind in on_gpu],
            options=":fancy_upsampling=1",
        )
        self._params = nvimgcodec.DecodeParams(
            apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB
        )
        self._stream = device.stream
        self._has_failed = False

    def decode(self, images: Sequence[bytes], max_image_pixels: int) -> list[cupy.ndarray | None]:
        """uint8 RGB [h, w, 3] for each image that is a complete JPEG within the limit and can be decoded; else None."""
        pixels: list[cupy.ndarray | None] = [None] * len(images)
        orientations = [orientation_for_gpu(data, max_image_pixels) for data in images]
        chosen = [index for index, orientation in enumerate(orientations) if orientation]
        if chosen:
            decoded = self._decode([without_metadata(images[index], "JPEG")[0] for index in chosen])
            for index, image in zip(chosen, decoded, strict=True):
                if image is not None and is_usable(image.__cuda_array_interface__, max_image_pixels):
                    pixels[index] = turn(self._share(image), orientations[index])
        return pixels

    def _decode(self, images: Sequence[bytes]) -> list[nvimgcodec.Image | None]:
        """Decodes in one batch, or image by image if that fails; None for each image that fails by itself."""
        try:
            streams = [nvimgcodec.CodeStream(data) for data in images]
            return list(self._decoder.decode(streams, params=self._params, cuda_stream=self._stream.ptr))
        except Exception as error:  # nvImageCodec does not document their types
            if not self._has_failed:
                logger.warning(
                    "nvImageCodec failed: Pillow decodes the images that it cannot decode, which is slower; "
                    "further failures are not logged",
                    exc_info=error,
                )
            self._has_failed = True
        if len(images) == 1:
            return [None]
        return [image for data in images for image in self._decode([data])]

    def _share(self, image: nvimgcodec.Image) -> cupy.ndarray:
        """The image's memory, for use on the stream on which it was decoded. Unlike DLPack, this does not wait for it.

        The decoder and the stream must outlive the memory, because it is returned to the decoder on that stream.
        """
        interface = image.__cuda_array_interface__
        shape, strides = interface["shape"], interface["strides"]
        owner = (self._decoder, self._stream, image)  # a tuple releases its last item first
        memory = cupy.cuda.UnownedMemory(interface["data"][0], math.prod(shape), owner)
        return cupy.ndarray(shape, np.uint8, cupy.cuda.MemoryPointer(memory, 0), strides)


def is_usable(interface: Mapping[str, Any], max_image_pixels: int) -> bool:
    """Whether a ``__cuda_array_interface__`` is uint8 [h, w, 3] within the limit, whatever the file's header says."""
    shape = interface["shape"]
    return (
        interface["typestr"] == "|u1"
        and len(shape) == 3
        and shape[2] == 3
        and 0 < shape[0] * shape[1] <= max_image_pixels
    )


def turn(pixels: Any, orientation: int) -> Any:
    """An upright view of stored pixels [h, w, 3], by their EXIF orientation, 1 to 8."""
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    return pixels.transpose(1, 0, 2) if orientation >= 5 else pixels


def orientation_for_gpu(data: bytes, max_image_pixels: int) -> int:
    """The EXIF orientation of a complete YCbCr colour JPEG of at most ``max_image_pixels``; 0 for anything else.

    Pillow decodes grey JPEGs, because nvImageCodec 0.9 does not write the pixels of some of them, without an error.
    """
    try:
        with open_picture(data, formats=("JPEG",)) as image:
            is_for_gpu = (
                image.mode == "RGB"
                and image.info.get("adobe_transform") != 0  # RGB without a transform
                and image.width * image.height <= max_image_pixels
                and END_OF_IMAGE in data[-MAX_TRAILER_BYTES:]
            )
            return image.info["orientation"] if is_for_gpu else 0
    except Exception:  # Pillow reports the error later
        return 0
