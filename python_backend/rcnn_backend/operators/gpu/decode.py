"""JPEG -> pixels on a GPU by nvImageCodec (nvJPEG); what it does not take is left to Pillow."""

import math
from collections.abc import Sequence

import cupy
import numpy as np
from nvidia import nvimgcodec

from rcnn_backend.devices import Gpu
from rcnn_backend.operators.picture_files import open_picture

END_OF_IMAGE = b"\xff\xd9"
MAX_TRAILER_BYTES = 1 << 10  # after a complete JPEG's end


class JpegDecoder:
    """nvImageCodec on the GPU and the stream of ``device``.

    Chroma is interpolated as libjpeg does it. The pixels are within a few of 255 levels of
    libjpeg's, whose inverse cosine transform rounds in other places.
    """

    def __init__(self, device: Gpu) -> None:
        on_gpu = (nvimgcodec.HW_GPU_ONLY, nvimgcodec.GPU_ONLY, nvimgcodec.HYBRID_CPU_GPU)
        self._decoder = nvimgcodec.Decoder(
            device_id=device.device_id,
            backends=[nvimgcodec.Backend(kind) for kind in on_gpu],
            options=":fancy_upsampling=1",
        )
        self._params = nvimgcodec.DecodeParams(
            apply_exif_orientation=True, color_spec=nvimgcodec.ColorSpec.SRGB
        )
        self._stream = device.stream

    def decode(self, images: Sequence[bytes], max_image_pixels: int) -> list[cupy.ndarray | None]:
        """uint8 RGB [h, w, 3] of each image that is a complete JPEG within the limit and decodes, else None."""
        pixels: list[cupy.ndarray | None] = [None] * len(images)
        chosen = [index for index, data in enumerate(images) if is_for_gpu(data, max_image_pixels)]
        if chosen:
            streams = [nvimgcodec.CodeStream(images[index]) for index in chosen]
            decoded = self._decoder.decode(streams, params=self._params, cuda_stream=self._stream.ptr)
            for index, image in zip(chosen, decoded, strict=True):
                pixels[index] = None if image is None else _share(image)
        return pixels


def _share(image: nvimgcodec.Image) -> cupy.ndarray:
    """The image's memory, for use on the stream that it was decoded on: DLPack would wait for it."""
    interface = image.__cuda_array_interface__
    shape, strides = interface["shape"], interface["strides"]
    memory = cupy.cuda.UnownedMemory(interface["data"][0], math.prod(shape), image)
    return cupy.ndarray(shape, np.uint8, cupy.cuda.MemoryPointer(memory, 0), strides)


def is_for_gpu(data: bytes, max_image_pixels: int) -> bool:
    """Whether it is a complete JPEG, YCbCr or grey, of at most ``max_image_pixels``."""
    try:
        with open_picture(data, formats=("JPEG",)) as image:
            return (
                image.mode in ("RGB", "L")
                and image.info.get("adobe_transform") != 0  # RGB without a transform
                and image.width * image.height <= max_image_pixels
                and END_OF_IMAGE in data[-MAX_TRAILER_BYTES:]
            )
    except Exception:  # Pillow says what is wrong with it
        return False
