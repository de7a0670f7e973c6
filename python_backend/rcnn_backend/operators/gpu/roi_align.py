"""RoIAlign over a feature pyramid on a GPU: torchvision's MultiScaleRoIAlign, all levels in one kernel.

Shapes: B images, R RoIs per image, C channels, L levels. Boxes are (x1, y1, x2, y2) in
pixels of the resized image.
"""

import math
from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from rcnn_backend.contract.parameters import PoolParameters
from rcnn_backend.operators.gpu import kernels

MAX_LEVELS = 8
MAX_SAMPLING_RATIO = 4  # for the kernels with a compiled-in number of samples
MAX_BIN_ROWS = 32  # pool_channels_last has a warp for each
WARP, THREADS, VECTOR_BYTES = 32, 256, 16
PLANAR_SHARED_BYTES = 24 * 1024
LEVEL = np.dtype(
    [
        ("data", np.uint64),
        ("image_stride", np.int64),
        ("channel_stride", np.int32),
        ("row_stride", np.int32),
        ("column_stride", np.int32),
        ("height", np.int32),
        ("width", np.int32),
        ("scale", np.float32),
    ]
)
PYRAMID = np.dtype(
    [
        ("levels", LEVEL, MAX_LEVELS),
        ("canonical_level", np.float32),
        ("canonical_scale", np.float32),
        ("finest", np.float32),
        ("coarsest", np.float32),
    ]
)


def multi_scale_roi_align(
    features: Sequence[cupy.ndarray],
    proposals: cupy.ndarray,
    num_proposals: cupy.ndarray,
    parameters: PoolParameters,
) -> cupy.ndarray:
    """Pools each real proposal from its level; ``aligned=False`` as in torchvision.

    Args:
        features: L float32 or float16 arrays [B, C, h, w] of one type, finest first, with any
            strides: contiguous, or channels-last, as some engines return them.
        proposals: float32 [B, R, 4], of which the first ``num_proposals[b]`` of image b are real.
        num_proposals: int32 [B, 1].

    Returns:
        [B, R, C, *output_size_hw] of the features' type, summed in float32, zero where there is
        no proposal.

    Raises:
        ValueError: the features have another type, or are not one for each stride.
    """
    if not len(features) == len(parameters.feature_strides) <= MAX_LEVELS:
        raise ValueError(
            f"{len(features)} features for the strides {parameters.feature_strides}: expected one for each, "
            f"at most {MAX_LEVELS}"
        )
    dtype, channels = features[0].dtype, features[0].shape[1]
    if any(feature.dtype != dtype or feature.shape[1] != channels for feature in features):
        given = [f"{feature.dtype} {feature.shape}" for feature in features]
        raise ValueError(f"features are {given}: expected one type and one number of channels")
    batch, rois = proposals.shape[:2]
    height, width = parameters.output_size_hw
    samples, cpp_type = parameters.sampling_ratio, kernels.cpp_type(dtype)
    pooled = cupy.empty((batch, rois, channels, height, width), dtype)
    inputs = (
        _pyramid(features, parameters),
        cupy.ascontiguousarray(proposals, np.float32),
        cupy.ascontiguousarray(num_proposals, np.int32),
        np.int32(rois),
        np.int32(channels),
    )
    if not 1 <= samples <= MAX_SAMPLING_RATIO:
        sizes = np.int32(height), np.int32(width), np.int32(samples)
        grid = (rois, math.ceil(channels * height * width / THREADS), batch)
        kernels.load("roi_align", f"pool_adaptive<{cpp_type}>")(grid, (THREADS,), (*inputs, *sizes, pooled))
        return pooled
    instance = f"<{cpp_type}, {height}, {width}, {samples}>"
    shared = channels_last_shared_bytes((height, width), samples, kernels.max_shared_bytes())
    if shared and all(_is_channels_last(feature) for feature in features):
        kernel = kernels.load("roi_align", "pool_channels_last" + instance, shared)
        grid = (rois, math.ceil(channels * dtype.itemsize / (WARP * VECTOR_BYTES)), batch)
        kernel(grid, (WARP * height,), (*inputs, pooled), shared_mem=shared)
        return pooled
    channel_bytes = height * width * dtype.itemsize
    block_channels = min(128, max(WARP, PLANAR_SHARED_BYTES // channel_bytes // WARP * WARP))
    shared = block_channels * channel_bytes
    kernel = kernels.load("roi_align", "pool_planar" + instance, shared)
    grid = (rois, math.ceil(channels / block_channels), batch)
    kernel(grid, (THREADS,), (*inputs, np.int32(block_channels), pooled), shared_mem=shared)
    return pooled


def channels_last_shared_bytes(
    output_size_hw: tuple[int, int], sampling_ratio: int, max_shared_bytes: int
) -> int:
    """The dynamic shared memory of a block of ``pool_channels_last``; 0 if it cannot run for such an output.

    Args:
        max_shared_bytes: the shared memory that a block can have on the GPU, static and dynamic together.
    """
    height, width = output_size_hw
    static = (
        height * (4 + 16 * sampling_ratio) + width * sampling_ratio * 12
    )  # Rows and Samples in roi_align.cu
    dynamic = WARP * (VECTOR_BYTES * height * width + 4)
    return dynamic if height <= MAX_BIN_ROWS and static + dynamic <= max_shared_bytes else 0


def _pyramid(features: Sequence[cupy.ndarray], parameters: PoolParameters) -> np.ndarray[Any, Any]:
    pyramid = np.zeros(1, PYRAMID)
    size = features[0].itemsize
    for level, (feature, stride) in enumerate(zip(features, parameters.feature_strides, strict=True)):
        strides = [step // size for step in feature.strides]
        pyramid["levels"][0, level] = (feature.data.ptr, *strides, *feature.shape[2:], 1 / stride)
    pyramid["canonical_level"] = parameters.canonical_level
    pyramid["canonical_scale"] = parameters.canonical_scale
    pyramid["finest"] = math.log2(parameters.feature_strides[0])
    pyramid["coarsest"] = math.log2(parameters.feature_strides[-1])
    return pyramid


def _is_channels_last(feature: cupy.ndarray) -> bool:
    """Whether a pixel's channels can be read 16 bytes at a time."""
    image, channel, row, column = feature.strides
    whole = feature.shape[1] * feature.itemsize, image, row, column, feature.data.ptr
    return channel == feature.itemsize and not any(number % VECTOR_BYTES for number in whole)
