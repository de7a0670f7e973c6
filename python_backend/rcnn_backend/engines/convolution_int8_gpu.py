"""``torch.ops.rcnn.convolution_int8`` on a GPU, computed by the kernel in ``convolution_int8.cu``. Needs CuPy.

The kernel gives the same results as torch's operators on a CPU, to the last bit. Its plans depend on no shape, so no plan is
built or compiled for another size or batch.
"""

import functools
import math
import struct
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from rcnn_backend.engines.convolution import Convolution
from rcnn_backend.engines.torch_kernels import launch

# Rows (pixels) and columns (kernels) that a block computes.
BLOCKS = (256, 128), (128, 128), (128, 64), (64, 128), (64, 64)
STAGES, DEPTH, PADDING = 4, 64, 8  # the constants of the kernel
CHANNELS = 16  # a multiple of this number of channels, and of kernels
MIN_CAPABILITY = 8, 0
ALIGNMENT = 16  # bytes
TYPES = {None: 0, torch.int8: 1, torch.float16: 2, torch.float32: 3}
GEOMETRY = struct.Struct("18i")
GEOMETRY_TYPE = np.dtype((np.void, GEOMETRY.size))

Plan = Callable[..., Tensor]


def int8_candidates(
    convolution: Convolution, device: torch.device
) -> Iterator[tuple[str, Callable[[], Plan]]]:
    """A name and a function that returns the plan, for each size of a block.

    There are none if the kernel does not support the convolution or the GPU.
    """
    if not _takes(convolution) or torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return
    for rows, columns in BLOCKS:
        yield f"rcnn {rows}x{columns}", functools.partial(_plan, convolution, rows, columns)


def _takes(convolution: Convolution) -> bool:
    kernels, channels = convolution.weight[:2]
    _, _, height, width = convolution.x
    batch, _, *output_hw = convolution.output
    return (
        convolution.dtype == torch.int8
        and convolution.groups == 1
        and channels % CHANNELS == 0
        and kernels % CHANNELS == 0
        and max(height * width * channels, batch * math.prod(output_hw)) < 1 << 30
    )


def _plan(convolution: Convolution, rows: int, columns: int) -> Plan:
    return functools.partial(_run, convolution, rows, columns)


def _run(
    convolution: Convolution,
    rows: int,
    columns: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor,
    residual_scale: Tensor | None,
) -> Tensor:
    result = torch.empty(
        convolution.output,
        dtype=convolution.result_dtype or convolution.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    batch, kernels, *output_hw = convolution.output
    blocks = math.ceil(batch * math.prod(output_hw) / rows) * math.ceil(kernels / columns)
    if blocks == 0:
        return result
    fields = batch, *convolution.x[2:], convolution.x[1], *output_hw, kernels, *convolution.weight[2:]
    types = TYPES[residual.dtype if residual is not None else None], TYPES[result.dtype]
    packed = GEOMETRY.pack(
        *fields, *convolution.stride, *convolution.padding, *convolution.dilation, *types, convolution.relu
    )
    tensors = [_aligned(each) for each in (x, weight, scale, bias, residual, residual_scale)]
    addresses = [np.uint64(each.data_ptr() if each is not None else 0) for each in (*tensors, result)]
    arguments = *addresses, np.frombuffer(packed, GEOMETRY_TYPE)
    sums_bytes = rows * (columns + PADDING) * 4
    shared_bytes = max(STAGES * (rows + columns) * DEPTH, sums_bytes)
    launch(
        "convolution_int8",
        f"convolution_int8<{rows}, {columns}>",
        (blocks,),
        2 * rows,
        arguments,
        x,
        shared_bytes,
    )
    return result


def _aligned(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone()
