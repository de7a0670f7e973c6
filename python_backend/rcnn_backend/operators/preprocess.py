"""Pixels -> the RPN's input: resize, normalise, pad; torchvision's GeneralizedRCNNTransform.

Shapes: B images; an image as sent has h x w pixels, the padded batch H x W. Sizes are (height, width).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rcnn_backend.contract.parameters import PreprocessParameters
from rcnn_backend.devices import Array, Device
from rcnn_backend.operators.sizes import group_by_size, padded_size_hw, resized_size_hw

Float = npt.NDArray[np.float32]


def preprocess(
    images: Sequence[Array], parameters: PreprocessParameters, dtype: npt.DTypeLike = np.float32
) -> tuple[Array, Array]:
    """Resizes, normalises and pads images to one batch, on a GPU if they are CuPy arrays.

    Args:
        images: B uint8 RGB arrays [h, w, 3] of any sizes.
        dtype: the type of ``input``, float32 or float16.

    Returns:
        ``input`` [B, 3, H, W], zero outside each image, with H and W from ``padded_size_hw``;
        and ``image_sizes`` float32 [B, 4]: resized height and width, original height and width.

    Raises:
        InvalidInputError: an image is too elongated to be resized.
    """
    if not isinstance(images[0], np.ndarray):
        from rcnn_backend.operators.gpu.preprocess import preprocess as preprocess_on_gpu  # needs CuPy

        return preprocess_on_gpu(images, parameters, dtype)
    sizes_hw = [resized_size_hw(image.shape[:2], parameters) for image in images]
    height, width = padded_size_hw(sizes_hw, parameters)
    batch = np.zeros((len(images), 3, height, width), dtype)
    std = np.float32(255) * np.array(parameters.image_std, np.float32)
    mean = np.float32(255) * np.array(parameters.image_mean, np.float32)
    for image, size_hw, padded in zip(images, sizes_hw, batch, strict=True):
        resized = resize(image, size_hw)  # [3, h', w'] in 0..255
        np.subtract(resized, mean[:, None, None], out=resized)
        np.divide(resized, std[:, None, None], out=padded[:, : size_hw[0], : size_hw[1]], casting="same_kind")
    image_sizes = [(*size_hw, *image.shape[:2]) for size_hw, image in zip(sizes_hw, images, strict=True)]
    return batch, np.array(image_sizes, np.float32)


def preprocess_requests(
    requests: Sequence[Sequence[Array]], parameters: PreprocessParameters, dtype: npt.DTypeLike = np.float32
) -> list[tuple[Array, Array]]:
    """Preprocesses each request's images, with one call for all requests that get the same H and W.

    The images of such requests get this H and W together, too: all of them fit into it, and each request
    would have got a smaller size if one were large enough for all.

    Raises:
        InvalidInputError: an image is too elongated to be resized.
    """
    results = {}
    for indices in group_by_size(requests, parameters):
        together = [image for index in indices for image in requests[index]]
        batch, image_sizes = preprocess(together, parameters, dtype)
        first = 0
        for index in indices:
            last = first + len(requests[index])
            results[index] = batch[first:last], image_sizes[first:last]
            first = last
    return [results[index] for index in range(len(requests))]


def warm_up(parameters: PreprocessParameters, device: Device, dtype: npt.DTypeLike = np.float32) -> None:
    """Compiles the kernel that ``preprocess`` runs on a GPU."""
    if device.is_gpu:
        from rcnn_backend.operators.gpu import preprocess as gpu  # needs CuPy

        gpu.warm_up(parameters, dtype)


def resize(image: npt.NDArray[np.uint8], size_hw: tuple[int, int]) -> Float:
    """Bilinear, no antialias, half-pixel centres: [h, w, 3] -> float32 [3, h', w'] in 0..255."""
    above, below, weight_y = source_pixels(image.shape[0], size_hw[0])
    rows = image[above].astype(np.float32)  # [h', w, 3]
    rows += (image[below] - rows) * weight_y[:, None, None]
    planes = np.ascontiguousarray(rows.transpose(2, 0, 1))  # [3, h', w]
    left, right, weight_x = source_pixels(image.shape[1], size_hw[1])
    columns = planes.take(left, axis=2)  # [3, h', w']
    step = planes.take(right, axis=2)
    step -= columns
    step *= weight_x
    columns += step
    return columns


def source_pixels(size: int, resized: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float]:
    """For each of ``resized`` pixels: the two nearest source pixels and the weight of the second.

    Follows torch's area_pixel_compute_source_index with its float32 scale and a single rounding
    (a fused multiply-add), so that the weights are bit-identical to torch's.
    """
    scale = np.float64(np.float32(size) / np.float32(resized))
    position = (scale * (np.arange(resized) + 0.5) - 0.5).astype(np.float32).clip(min=0)
    first = np.minimum(np.floor(position).astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    return first, second, np.clip(position - first.astype(np.float32), 0, 1).astype(np.float32)
