"""Compares the CUDA kernels with torchvision on the same GPU, in one run: medians of CUDA event timings.

    python tests/benchmarks/kernels.py

Inputs rotate, so that no run finds its own input in the cache. A time is measured from the start of the
first launch to the end of the last one. The launches are queued in the stream beforehand, except if the
step itself waits for the GPU, as torchvision's does. The floor is the time that the GPU's memory needs to
read the bytes that a step must read and to write its result, at the rate of a large copy. "host" is the
CPU time of calling our step.
"""

import argparse
import shlex
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import cupy
import numpy as np
import torch
import torchvision
from rcnn_backend.contract.parameters import (
    DetectionParameters,
    PoolParameters,
    PreprocessParameters,
    ProposalParameters,
)
from rcnn_backend.operators.gpu.detections import detect
from rcnn_backend.operators.gpu.keypoints import heatmaps_to_keypoints
from rcnn_backend.operators.gpu.preprocess import preprocess
from rcnn_backend.operators.gpu.proposals import filter_proposals
from rcnn_backend.operators.gpu.roi_align import multi_scale_roi_align
from rcnn_backend.operators.rles import paste_masks
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints as torchvision_keypoints
from torchvision.models.detection.transform import GeneralizedRCNNTransform

BATCH, ROIS, CLASSES, CHANNELS = 8, 1000, 90, 256
HEIGHT, WIDTH = 800, 1344
STRIDES = [4, 8, 16, 32]
LEVEL_ROWS = [1000, 1000, 1000, 1000, 500]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PREPROCESS = PreprocessParameters(800, 1333, None, MEAN, STD, 32, 10**8)
PROPOSALS = ProposalParameters(0.0, 0.7, 1e-3, [ROIS], 5000)
POOLING = PoolParameters(STRIDES, 224, 4, [7, 7], 2)
DETECTIONS = DetectionParameters(0.05, 0.5, 1e-2, 100)
SETS = 3  # number of sets of inputs
BUSY_CYCLES = 2_000_000  # about a millisecond, in which launches are queued


class Comparison(NamedTuple):
    """A step with both implementations, which take one set of inputs, and the bytes that it must move."""

    name: str
    inputs: Sequence[Any]
    ours: Callable[[Any], object]
    theirs: Callable[[Any], object]
    least_bytes: int


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=50, help="number of timed runs of each step (default: 50)"
    )
    arguments = parser.parse_args()
    bytes_a_ms = copy_rate(arguments.repeats)
    columns = ("torchvision", "ours", "faster", "floor", "share", "host")
    print(f"{'step':52}" + "".join(f"{column:>12}" for column in columns))
    with torch.inference_mode():
        for compare in (preprocessing, suppression, pooling, detecting, pasting, keypoints):
            for step in compare():
                theirs_ms, _ = median_ms(step.theirs, step.inputs, arguments.repeats)
                ours_ms, host_ms = median_ms(step.ours, step.inputs, arguments.repeats)
                floor_ms = step.least_bytes / bytes_a_ms
                print(
                    f"{step.name:52}{theirs_ms:9.3f} ms{ours_ms:9.3f} ms{theirs_ms / ours_ms:11.1f}x"
                    f"{floor_ms:9.3f} ms{floor_ms / ours_ms:12.0%}{host_ms:9.3f} ms"
                )
    print(
        f"{torch.cuda.get_device_name()}, copy rate {bytes_a_ms / 1e9:.2f} TB/s, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, CuPy {cupy.__version__}"
    )
    print("command: python", shlex.join(sys.argv))
    return 0


def preprocessing() -> Iterable[Comparison]:
    """Eight pictures of 480x640 (height x width) become 800x1066, padded to 800x1088."""
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [
        torch.randint(0, 256, (BATCH, 480, 640, 3), dtype=torch.uint8, device="cuda", generator=generator)
        for _ in range(SETS)
    ]
    pairs = [([cupy.from_dlpack(image) for image in images], list(images)) for images in inputs]
    transform = GeneralizedRCNNTransform(800, 1333, MEAN, STD).eval()

    def theirs(pair: Any) -> object:
        return transform([image.permute(2, 0, 1) / 255 for image in pair[1]])

    for dtype in (np.float32, np.float16):
        result, _ = preprocess(pairs[0][0], PREPROCESS, dtype)

        def ours(pair: Any, dtype: type = dtype) -> object:
            return preprocess(pair[0], PREPROCESS, dtype)

        name = f"preprocess, 8 x 480x640, {np.dtype(dtype)} out"
        yield Comparison(name, pairs, ours, theirs, inputs[0].nbytes + result.nbytes)


def random_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """Boxes of 16 to 800 pixels and aspect ratios of 1:2 to 2:1, crowded around 60 objects, clipped."""
    centres = random.uniform([0, 0], [WIDTH, HEIGHT], (60, 2))[random.integers(0, 60, count)]
    centres += random.normal(0, 20, (count, 2))
    side = np.exp(random.uniform(np.log(16), np.log(800), count))
    aspect = np.exp(random.uniform(-np.log(2), np.log(2), count) / 2)
    half = np.stack([side * aspect, side / aspect], axis=1) / 2
    boxes = np.concatenate([centres - half, centres + half], axis=1)
    clipped: np.ndarray = boxes.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.float32)
    return clipped


def suppression() -> Iterable[Comparison]:
    """Our step also clips, drops, sorts, gathers and pads."""
    random = np.random.default_rng(1)
    levels = np.repeat(np.arange(len(LEVEL_ROWS)), LEVEL_ROWS)
    inputs = []
    for _ in range(SETS):
        rows = np.empty((BATCH, len(levels), 6), np.float32)
        for image in rows:
            image[:, 1:5] = random_boxes(random, len(levels))
            image[:, 5] = levels
            scores = random.uniform(0, 1, len(levels))
            image[:, 0] = scores[np.lexsort([-scores, levels])]  # sorted within each level
        tensor = torch.from_numpy(rows).cuda()
        each = [
            (image[:, 1:5].contiguous(), image[:, 0].contiguous(), image[:, 5].long()) for image in tensor
        ]
        inputs.append((cupy.from_dlpack(tensor), each))
    sizes = cupy.asarray(np.tile(np.array([HEIGHT, WIDTH, HEIGHT, WIDTH], np.float32), (BATCH, 1)))
    yield Comparison(
        f"NMS, 8 images x {len(levels)} boxes of 5 levels",
        inputs,
        lambda pair: filter_proposals(pair[0], sizes, PROPOSALS),
        lambda pair: [torchvision.ops.batched_nms(*image, 0.7) for image in pair[1]],
        inputs[0][0].nbytes + BATCH * ROIS * 16,
    )


def pooling() -> Iterable[Comparison]:
    """torchvision needs the boxes in the features' type."""
    random = np.random.default_rng(2)
    proposals = np.stack([random_boxes(random, ROIS) for _ in range(BATCH)])
    boxes = torch.from_numpy(proposals).cuda()
    ours_boxes, counts = cupy.from_dlpack(boxes), cupy.full((BATCH, 1), ROIS, np.int32)
    touched = touched_pixels(boxes)
    for dtype in (torch.float16, torch.float32):
        for layout in (torch.contiguous_format, torch.channels_last):
            inputs = []
            for _ in range(SETS - 1):
                shapes = [(BATCH, CHANNELS, HEIGHT // stride, WIDTH // stride) for stride in STRIDES]
                pyramid = [
                    torch.randn(shape, device="cuda").to(dtype, memory_format=layout) for shape in shapes
                ]
                inputs.append((pyramid, [cupy.from_dlpack(feature) for feature in pyramid]))
            pooler, lists = (
                torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
                list(boxes.to(dtype)),
            )

            def theirs(pair: Any, pooler: Any = pooler, lists: Any = lists) -> object:
                features = OrderedDict((str(level), feature) for level, feature in enumerate(pair[0]))
                return pooler(features, lists, [(HEIGHT, WIDTH)] * BATCH)

            name = "channels-last" if layout == torch.channels_last else "contiguous"
            yield Comparison(
                f"RoIAlign, 8 x 1000, {str(dtype)[6:]}, {name}",
                inputs,
                lambda pair: multi_scale_roi_align(pair[1], ours_boxes, counts, POOLING),
                theirs,
                (touched + BATCH * ROIS * 49) * CHANNELS * dtype.itemsize,
            )


def touched_pixels(boxes: torch.Tensor) -> int:
    """How many of the pyramid's pixels RoIAlign reads, from the gradient of its output."""
    with torch.inference_mode(False), torch.enable_grad():
        pyramid = OrderedDict(
            (
                str(level),
                torch.zeros(BATCH, 1, HEIGHT // stride, WIDTH // stride, device="cuda", requires_grad=True),
            )
            for level, stride in enumerate(STRIDES)
        )
        pooler = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
        pooler(pyramid, list(boxes.clone()), [(HEIGHT, WIDTH)] * BATCH).sum().backward()
        return sum(int((feature.grad != 0).sum()) for feature in pyramid.values() if feature.grad is not None)


def detecting() -> Iterable[Comparison]:
    """torchvision starts from logits. Its box decoding is left out, because our step gets decoded boxes."""
    random = np.random.default_rng(3)
    inputs = []
    for _ in range(SETS):
        logits = torch.from_numpy(random.normal(0, 2.5, (BATCH, ROIS, CLASSES + 1)).astype(np.float32)).cuda()
        each = [random_boxes(random, ROIS * (CLASSES + 1)) for _ in range(BATCH)]
        boxes = torch.from_numpy(np.stack(each)).cuda().reshape(BATCH, ROIS, CLASSES + 1, 4)
        scores = torch.softmax(logits, -1)[..., 1:].contiguous()
        ours = cupy.from_dlpack(scores), cupy.from_dlpack(boxes[:, :, 1:].contiguous())
        inputs.append((ours, (logits.flatten(0, 1), boxes.flatten(0, 1))))
    counts = cupy.full((BATCH, 1), ROIS, np.int32)
    sizes = cupy.asarray(np.tile(np.array([HEIGHT, WIDTH, HEIGHT, WIDTH], np.float32), (BATCH, 1)))
    heads = SimpleNamespace(
        box_coder=SimpleNamespace(decode=lambda regression, proposals: regression),
        score_thresh=DETECTIONS.score_thresh,
        nms_thresh=DETECTIONS.nms_thresh,
        detections_per_img=DETECTIONS.detections_per_img,
    )
    proposals = [torch.zeros(ROIS, 4)] * BATCH
    scores = inputs[0][0][0]
    candidates = int((scores > DETECTIONS.score_thresh).sum())
    yield Comparison(
        f"detections, 8 x 1000 x 90 ({candidates // BATCH} candidates each)",
        inputs,
        lambda pair: detect(pair[0][0], pair[0][1], counts, sizes, [DETECTIONS] * BATCH, 100),
        lambda pair: RoIHeads.postprocess_detections(heads, *pair[1], proposals, [(HEIGHT, WIDTH)] * BATCH),
        scores.nbytes + candidates * 16,
    )


def pasting() -> Iterable[Comparison]:
    """100 masks. Our step returns the edges on the host, torchvision the pixels on the GPU."""
    random = np.random.default_rng(4)
    inputs = []
    for _ in range(SETS):
        masks = torch.from_numpy(random.random((100, 1, 28, 28)).astype(np.float16)).cuda()
        boxes = random_boxes(random, 100)
        ours = cupy.from_dlpack(masks[:, 0].contiguous()), boxes
        inputs.append((ours, (masks.float(), torch.from_numpy(boxes).cuda())))
    size_hw = HEIGHT, WIDTH
    num_edges = sum(map(len, paste_masks(ours[0], ours[1], size_hw, 0.5)))
    yield Comparison(
        f"paste masks, 100 x {HEIGHT}x{WIDTH} ({num_edges} edges)",
        inputs,
        lambda pair: list(paste_masks(pair[0][0], pair[0][1], size_hw, 0.5)),
        lambda pair: paste_masks_in_image(*pair[1], size_hw) > 0.5,
        inputs[0][0][0].nbytes + 4 * num_edges,
    )


def keypoints() -> Iterable[Comparison]:
    """Ten people per image, with 17 keypoints each. torchvision waits for the GPU at each box."""
    random = np.random.default_rng(4)
    inputs = []
    for _ in range(SETS):
        heatmaps = torch.randn((BATCH * 10, 17, 56, 56), device="cuda")
        boxes = torch.from_numpy(random_boxes(random, BATCH * 10)).cuda()
        inputs.append(((cupy.from_dlpack(heatmaps), cupy.from_dlpack(boxes)), (heatmaps, boxes)))
    yield Comparison(
        "keypoints, 8 x 10 x 17",
        inputs,
        lambda pair: heatmaps_to_keypoints(*pair[0]),
        lambda pair: torchvision_keypoints(*pair[1]),
        inputs[0][1][0].nbytes,
    )


def copy_rate(repeats: int) -> float:
    """Bytes read and written per millisecond, by a copy of a gigabyte on the device."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_ms(target.copy_, [source], repeats)[0]


def median_ms(call: Callable[[Any], object], inputs: Sequence[Any], repeats: int) -> tuple[float, float]:
    """Median milliseconds of a call on the GPU, and of making it on the CPU, after one warm-up call for each input."""
    for each in inputs:
        call(each)
    gpu_ms, host_ms = [], []
    for number in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(BUSY_CYCLES)
        start.record()
        called = time.perf_counter()
        call(inputs[number % len(inputs)])
        host_ms.append(1e3 * (time.perf_counter() - called))
        end.record()
        end.synchronize()
        gpu_ms.append(start.elapsed_time(end))
    return statistics.median(gpu_ms), statistics.median(host_ms)


if __name__ == "__main__":
    sys.exit(main())
