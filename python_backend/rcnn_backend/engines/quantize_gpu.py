"""``torch.ops.rcnn.quantize`` on a GPU, computed by one CUDA kernel. Importing this module registers it. Needs CuPy."""

import numpy as np
import torch
from torch import Tensor

from rcnn_backend.engines.convolution import CHANNELS_LAST
from rcnn_backend.engines.torch_kernels import CPP_TYPES, launch

THREADS = 256
VALUES = 8  # per thread
ALIGNMENT = 16  # bytes that a thread reads at once


def quantize(x: Tensor, scale: float) -> Tensor:
    """FP16 or FP32 [B, C, H, W] -> x / scale as int8, rounded and clamped, on torch's current stream.

    See ``rcnn_backend.engines.convolution_int8``.
    """
    x = x.contiguous(memory_format=CHANNELS_LAST)
    if x.data_ptr() % ALIGNMENT:
        x = x.clone(memory_format=CHANNELS_LAST)
    found = torch.empty(x.shape, dtype=torch.int8, device=x.device, memory_format=CHANNELS_LAST)
    count = x.numel()
    if count:
        blocks = -(-count // (THREADS * VALUES))
        arguments = (x.data_ptr(), found.data_ptr(), np.float32(scale), np.int64(count))
        launch("quantize", f"quantize<{CPP_TYPES[x.dtype]}>", (blocks,), THREADS, arguments, on=x)
    return found


torch.library.impl("rcnn::quantize", "CUDA", quantize)
