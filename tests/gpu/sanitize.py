"""Runs every kernel on small inputs for compute-sanitizer. The results are not checked here, but in the tests.

    compute-sanitizer --tool memcheck --error-exitcode 1 python tests/gpu/sanitize.py
    compute-sanitizer --tool racecheck --error-exitcode 1 python tests/gpu/sanitize.py

Each array is a separate allocation, so that an access beyond its end is detected.
"""

import os

import cupy
import numpy as np
import torch
from rcnn_backend.contract.parameters import (
    DetectionParameters,
    PoolParameters,
    PreprocessParameters,
    ProposalParameters,
)
from rcnn_backend.engines import (  # noqa: F401  register operators for GPUs
    best_boxes_gpu,
    convolution_int8_gpu,
    feature_maps_gpu,
    quantize_gpu,
)
from rcnn_backend.engines.convolution_int8 import describe_int8
from rcnn_backend.operators.gpu.detections import detect
from rcnn_backend.operators.gpu.keypoints import heatmaps_to_keypoints
from rcnn_backend.operators.gpu.preprocess import preprocess
from rcnn_backend.operators.gpu.proposals import filter_proposals
from rcnn_backend.operators.gpu.roi_align import multi_scale_roi_align
from rcnn_backend.operators.rles import paste_masks
from rcnn_backend.steps.lost_tensors import take_samples

RANDOM = np.random.default_rng(0)
SIZES = np.tile(np.array([300, 400, 600, 1000], np.float32), (2, 1))


def main() -> None:
    """Runs all steps, with every layout, type and kernel that they choose from."""
    cupy.cuda.set_allocator(None)
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # torch reads it when it first allocates
    for dtype in (np.float32, np.float16):
        run_quantize(dtype)
        run_preprocess(dtype)
        run_roi_align(dtype)
        run_keypoints(dtype)
    for torch_dtype in (torch.float32, torch.float16):
        run_feature_maps(torch_dtype)
        run_best_boxes(torch_dtype)
    run_convolutions_int8()
    run_proposals()
    run_detections()
    run_samples()
    run_rles()
    cupy.cuda.Device().synchronize()
    print("done")


def random_boxes(*shape: int) -> np.ndarray:
    """Boxes [*shape, 4] of up to 80 pixels."""
    corner = RANDOM.uniform(0, 300, (*shape, 2))
    boxes = np.concatenate([corner, corner + RANDOM.uniform(1, 80, (*shape, 2))], axis=-1)
    return np.asarray(boxes, np.float32)


def run_preprocess(dtype: type) -> None:
    """More pictures than one launch allows, and a picture whose last pixel is at the end of its allocation."""
    limits = PreprocessParameters(40, 64, None, [0.5] * 3, [0.2] * 3, 32, 10**8)
    pictures = [RANDOM.integers(0, 256, (20 + number, 33, 3), np.uint8) for number in range(50)]
    preprocess([cupy.asarray(picture) for picture in pictures], limits, dtype)


def run_quantize(dtype: type) -> None:
    """Numbers that fill vectors, and a few more than that."""
    for shape in ((2, 16, 5, 4), (3, 3, 3, 3), (1, 1, 1, 1)):
        torch.ops.rcnn.quantize(
            torch.from_dlpack(cupy.asarray(RANDOM.standard_normal(shape).astype(dtype))), 0.02
        )


def run_convolutions_int8() -> None:
    """Every size of a block, windows across every border, and rows, kernels and terms that do not fill a block."""
    for channels, kernels, side, stride, dilation in (
        (64, 256, 1, 1, 1),
        (48, 160, 3, 1, 2),
        (16, 16, 3, 2, 1),
    ):
        padding = dilation * (side // 2)
        geometry = (stride, stride), (padding, padding), (dilation, dilation), 1
        x = _int8(3, channels, 13, 11)
        weight, scale = _int8(kernels, channels, side, side), torch.rand(kernels, device="cuda")
        for dtype in (torch.int8, torch.float16, torch.float32):
            described = describe_int8(x, weight, scale, None, *geometry, True, dtype)
            residual = _int8(*described.output).to(dtype)
            described = describe_int8(x, weight, scale, residual, *geometry, True, dtype)
            for _, make in convolution_int8_gpu.int8_candidates(described, x.device):
                make()(x, weight, scale, residual, scale, scale)


def _int8(*shape: int) -> torch.Tensor:
    numbers = torch.randint(-128, 128, shape, dtype=torch.int8, device="cuda")
    return numbers.contiguous(memory_format=torch.channels_last)


def run_proposals() -> None:
    """Three levels, a single row, and values that uninitialised memory may contain."""
    limits = ProposalParameters(0.1, 0.6, 1e-3, [100], 5000)
    rows = np.empty((2, 570, 6), np.float32)
    rows[..., 0], rows[..., 1:5] = RANDOM.uniform(0, 1, (2, 570)), random_boxes(2, 570)
    rows[..., 5] = np.repeat([0, 1, 2], [300, 200, 70])
    garbage = RANDOM.integers(0, 2**32, (2, 300, 6), np.uint32).view(np.float32)
    for rpn_boxes in (rows, np.ascontiguousarray(rows[:, :1]), garbage):
        filter_proposals(cupy.asarray(rpn_boxes), cupy.asarray(SIZES), limits)


def run_roi_align(dtype: type) -> None:
    """Both layouts, two output sizes, fixed and adaptive samples, and channels that do not fill a vector."""
    proposals, counts = cupy.asarray(random_boxes(2, 6)), cupy.asarray(np.array([[6], [4]], np.int32))
    for channels in (40, 13):
        sizes = [(2, channels, 400 // stride, 400 // stride) for stride in (4, 8)]
        planar = [cupy.asarray(RANDOM.standard_normal(size).astype(dtype)) for size in sizes]
        last = [
            cupy.ascontiguousarray(feature.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for feature in planar
        ]
        for output_size_hw, sampling_ratio in (([7, 7], 2), ([14, 14], 2), ([7, 7], 0)):
            pooling = PoolParameters([4, 8], 224, 4, output_size_hw, sampling_ratio)
            for features in (planar, last):
                multi_scale_roi_align(features, proposals, counts, pooling)


def run_detections() -> None:
    """Random boxes, and more kept boxes than are sorted at once."""
    limits = DetectionParameters(0.05, 0.5, 1e-2, 100)
    counts, sizes = cupy.asarray(np.array([[200], [150]], np.int32)), cupy.asarray(SIZES)
    scores, boxes = RANDOM.uniform(0, 1, (2, 200, 5)).astype(np.float32), random_boxes(2, 200, 5)
    detect(cupy.asarray(scores), cupy.asarray(boxes), counts, sizes, [limits] * 2, 20)
    left, top = np.meshgrid(np.arange(0, 400, 40), np.arange(0, 300, 30))
    corner = np.stack([left.ravel(), top.ravel()], axis=1)  # [100, 2]: no two boxes overlap
    apart = np.concatenate([corner, corner + 9], axis=1).astype(np.float32)[None, :, None].repeat(30, axis=2)
    scores = RANDOM.uniform(0.06, 1, (1, 100, 30)).astype(np.float32)
    detect(cupy.asarray(scores), cupy.asarray(apart), counts[:1], sizes[:1], [limits], 100)


def run_keypoints(dtype: type) -> None:
    """A box without size, one smaller and one larger than its heatmap, and heatmaps of one sample."""
    boxes = cupy.asarray(np.array([[5, 5, 5, 5], [-9, 3, 21.5, 17.3], [0, 0, 90.1, 140]], np.float32))
    for side in (56, 1):
        heatmaps = RANDOM.standard_normal((3, 2, side, side)).astype(dtype)
        heatmaps_to_keypoints(cupy.asarray(heatmaps), boxes)


def run_feature_maps(dtype: torch.dtype) -> None:
    """Channels that fill vectors and channels that do not, windows across every border, larger and smaller maps."""
    for channels in (16, 5):
        x = torch.randn(2, channels, 13, 9, device="cuda").to(dtype)
        for geometry in (([3, 3], [2, 2], [1, 1]), ([1, 1], [2, 2], [0, 0]), ([2, 3], [1, 2], [1, 1])):
            torch.ops.rcnn.max_pool(x, *geometry)
        for size in ((26, 18), (25, 17), (4, 3)):
            torch.ops.rcnn.upsample(x, *size)
            torch.ops.rcnn.upsample(x, *size, torch.randn(2, channels, *size, device="cuda").to(dtype))


def run_best_boxes(dtype: torch.dtype) -> None:
    """Levels of several tiles, of less than one tile and of one anchor; more equal logits than a block can sort."""
    sizes = [(50, 42), (13, 9), (1, 1)]
    cells = [torch.randn(3, 4, device="cuda") for _ in sizes]
    deltas = [torch.randn(2, 12, *size, device="cuda").to(dtype) for size in sizes]
    logits = [torch.randn(2, 3, *size, device="cuda").to(dtype) for size in sizes]
    for objectness in (logits, [torch.zeros_like(level) for level in logits]):
        for top_n in (7, 1000, 4096):
            torch.ops.rcnn.best_boxes(objectness, deltas, cells, 400, 336, top_n, [1.0] * 4, 4.0)


def run_samples() -> None:
    """As many tensors as one launch allows, of every type, some with fewer elements than are sampled."""
    tensors = [
        cupy.asarray(RANDOM.uniform(0, 9, (3, 2, 1 + number % 6)).astype(dtype))
        for number, dtype in zip(range(32), [np.float32, np.float16, np.int32] * 11, strict=False)
    ]
    take_samples(tensors)


def run_rles() -> None:
    """Masks of noise inside the picture, across its border and outside; and one that reaches the last pixel."""
    boxes = np.concatenate(
        [random_boxes(20), [[-20, -20, 420, 320], [500, 10, 600, 60], [399, 299, 400, 300]]]
    )
    masks = cupy.asarray(RANDOM.random((len(boxes), 28, 28)).astype(np.float16))
    for size_hw in ((300, 400), (1, 1)):
        list(paste_masks(masks, boxes.astype(np.float32), size_hw, 0.5))


if __name__ == "__main__":
    main()
