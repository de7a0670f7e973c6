"""The networks of a detector before they become engines: a torch module, example inputs, names and axes.

Names and shapes are those of the declared chain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rcnn_backend.contract.chain_types import INT64, NETWORK, Tensor, bind
from torch import nn
from torch.export import Dim
from torchvision.models.detection import FasterRCNN

from rcnn_export.detector.families import chain_of
from rcnn_export.detector.shapes import pooled_levels, pooled_strides, round_up, tensor_sizes
from rcnn_export.detector.split import MODULES, Cut
from rcnn_export.engines.precision import FP32, Precision

MAX_BATCH = 128
MAX_SIDE_PX = 8192
MAX_ROIS = 1 << 14
TYPICAL_BATCH = 8
TYPICAL_DETECTIONS = 10  # per image
EXAMPLE_SIZE_HW = (256, 320)  # large enough for several rows on every level, so that their number is dynamic


@dataclass(frozen=True)
class Stage:
    """A module that is to become an engine.

    Attributes:
        name: the step's name in the chain, such as ``rpn``.
        typical: the shape of each input that a compiler should choose its kernels for.
        dynamic_shapes: the dynamic axes of each input, as ``torch.export.export`` takes them.
        axes: the axes of each input and output, by name: a number is the length of a fixed axis, a string is
            the name of a dynamic one.
    """

    name: str
    module: nn.Module
    example: tuple[torch.Tensor, ...]
    typical: tuple[tuple[int, ...], ...]
    dynamic_shapes: tuple[dict[int, Any], ...]
    inputs: Sequence[str]
    outputs: Sequence[str]
    axes: dict[str, list[str | int]]


def engine_stages(model: FasterRCNN, precision: Precision = FP32) -> list[Stage]:
    """All networks of the detector, in the order in which they run."""
    return [engine_stage(model, step.name, precision) for step in chain_of(model).engines]


def engine_stage(model: FasterRCNN, name: str, precision: Precision = FP32) -> Stage:
    """The network of one step. Pictures have sides that are multiples of the detector's ``size_divisible``."""
    chain, levels = chain_of(model), len(pooled_levels(model))
    step = chain.step(name)
    inputs, outputs = chain.inputs(step, levels), chain.outputs(step, levels)
    divisor, fixed = model.transform.size_divisible, tensor_sizes(model)
    typical_height, typical_width = _typical_size_hw(model)
    example_height, example_width = (round_up(side, divisor) for side in EXAMPLE_SIZE_HW)
    most_detections = fixed["detections"]
    example = {
        "height": example_height,
        "width": example_width,
        "proposals": 6,
        "head_detections": min(3, most_detections),
    }
    typical = {
        "height": typical_height,
        "width": typical_width,
        "proposals": model.rpn.post_nms_top_n(),
        "head_detections": min(TYPICAL_DETECTIONS, most_detections),
    }
    batch = Dim("batch", min=1, max=MAX_BATCH)
    height, width = (divisor * Dim(name, min=1, max=MAX_SIDE_PX // divisor) for name in ("rows", "columns"))
    if divisor % pooled_strides(model)[-1]:
        # The levels' sizes are then rounded, and the tracer could not prove that each level has two or more rows.
        height = width = Dim.DYNAMIC
    open_dims = {
        "height": height,
        "width": width,
        "proposals": Dim("proposals", min=1, max=MAX_ROIS),
    }
    if most_detections > 1:
        open_dims["head_detections"] = Dim("head_detections", min=1, max=most_detections)
    return Stage(
        name,
        _in_precision(MODULES[name](model), precision),
        tuple(_example(tensor, fixed | example, precision) for tensor in inputs),
        tuple((TYPICAL_BATCH, *bind(tensor.shape, fixed | typical)) for tensor in inputs),
        tuple(
            {0: batch}
            | {axis: open_dims[word] for axis, word in enumerate(tensor.shape, start=1) if word in open_dims}
            for tensor in inputs
        ),
        [tensor.name for tensor in inputs],
        [tensor.name for tensor in outputs],
        {tensor.name: _axes(tensor, fixed) for tensor in (*inputs, *outputs)},
    )


def _example(tensor: Tensor, sizes: dict[str, int], precision: Precision) -> torch.Tensor:
    """An example input for two images."""
    if tensor.data_type == INT64:
        return torch.ones(2, *bind(tensor.shape, sizes), dtype=torch.int64)
    dtype = precision.dtype if tensor.data_type == NETWORK else torch.float32
    return torch.rand(2, *bind(tensor.shape, sizes), dtype=dtype)


def _axes(tensor: Tensor, fixed: dict[str, int]) -> list[str | int]:
    """The batch, then a number for each fixed size and a name for each other size."""
    prefix = f"{tensor.name}_" if tensor.is_pyramid else ""
    return [
        "batch",
        *(
            size if isinstance(size, int) else fixed.get(size, prefix + size.removeprefix("level_"))
            for size in tensor.shape
        ),
    ]


def _typical_size_hw(model: FasterRCNN) -> tuple[int, int]:
    """Height and width of a padded picture that is as wide as ``max_size`` allows."""
    transform = model.transform
    width, height = transform.fixed_size or (transform.max_size, transform.min_size[-1])
    divisor = transform.size_divisible
    return round_up(height, divisor), round_up(width, divisor)


def _in_precision(module: Cut, precision: Precision) -> nn.Module:
    for name in module.NETWORKS:
        setattr(module, name, precision.prepare(getattr(module, name)))
    return module.eval()
