"""Pixels -> the RPN's input on a GPU: resize, normalise and pad a batch in one kernel.

Shapes: B images; an image as sent has h x w pixels, the padded batch H x W. Sizes are (height, width).
"""

import math
from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from rcnn_backend.contract.parameters import PreprocessParameters
from rcnn_backend.operators.gpu import kernels
from rcnn_backend.operators.sizes import padded_size_hw, resized_size_hw

MAX_PICTURES = 48  # per launch
PICTURE = np.dtype(
    [
        ("pixels", np.uint64),
        ("strides", np.int32, 3),
        ("size_hw", np.int32, 2),
        ("resized_hw", np.int32, 2),
        ("scale_hw", np.float32, 2),
        ("padding", np.int32),
    ]
)
BATCH = np.dtype(
    [("pictures", PICTURE, MAX_PICTURES), ("mean", np.float32, 3), ("inverse_std", np.float32, 3)]
)
BLOCK = (64, 4)  # threads
ROWS = 4  # pixels per thread


def preprocess(
    images: Sequence[cupy.ndarray], parameters: PreprocessParameters, dtype: Any = np.float32
) -> tuple[cupy.ndarray, cupy.ndarray]:
    """Resizes, normalises and pads images to one batch.

    The source coordinates are bit-identical to torch's (``area_pixel_compute_source_index``).

    Args:
        images: B uint8 RGB arrays [h, w, 3] of any sizes and strides. Pass a planar array [3, h, w] as
            ``image.transpose(1, 2, 0)``, which copies nothing.
        dtype: the type of ``input``, float32 or float16.

    Returns:
        ``input`` [B, 3, H, W], zero outside each image, with H and W from ``padded_size_hw``;
        and ``image_sizes`` float32 [B, 4]: resized height and width, original height and width.

    Raises:
        InvalidInputError: an image is too elongated to be resized.
        ValueError: an array is not uint8 [h, w, 3].
    """
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image is {image.dtype} {image.shape}: expected uint8 [height, width, 3]")
    sizes_hw = [resized_size_hw(image.shape[:2], parameters) for image in images]
    height, width = padded_size_hw(sizes_hw, parameters)
    batch = cupy.empty((len(images), 3, height, width), dtype)
    image_sizes = cupy.empty((len(images), 4), np.float32)
    kernel = kernels.load("preprocess", f"resize_normalize_pad<{kernels.cpp_type(batch.dtype)}>")
    for first in range(0, len(images), MAX_PICTURES):
        here = slice(first, first + MAX_PICTURES)
        pictures = _pictures(images[here], sizes_hw[here], parameters)
        grid = (
            math.ceil(width / BLOCK[0]),
            math.ceil(height / (BLOCK[1] * ROWS)),
            len(images[here]),
        )
        arguments = pictures, np.int32(height), np.int32(width), batch[here], image_sizes[here]
        kernel(grid, BLOCK, arguments)
    return batch, image_sizes


def _pictures(
    images: Sequence[cupy.ndarray], sizes_hw: Sequence[tuple[int, int]], parameters: PreprocessParameters
) -> np.ndarray[Any, Any]:
    """The description of some pictures for the kernel."""
    batch = np.zeros(1, BATCH)
    pictures = batch["pictures"][0, : len(images)]
    pictures["pixels"] = [image.data.ptr for image in images]
    pictures["strides"] = [image.strides for image in images]
    pictures["size_hw"] = [image.shape[:2] for image in images]
    pictures["resized_hw"] = sizes_hw
    pictures["scale_hw"] = pictures["size_hw"].astype(np.float32) / pictures["resized_hw"].astype(np.float32)
    batch["mean"] = np.float32(255) * np.array(parameters.image_mean, np.float32)
    batch["inverse_std"] = 1 / (np.float32(255) * np.array(parameters.image_std, np.float32))
    return batch


def warm_up(parameters: PreprocessParameters, dtype: Any = np.float32) -> None:
    """Compiles and loads the kernel that ``preprocess`` runs."""
    preprocess([cupy.zeros((8, 8, 3), np.uint8)], parameters, dtype)
