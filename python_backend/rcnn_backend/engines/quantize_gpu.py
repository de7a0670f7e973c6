"""``torch.ops.rcnn.quantize`` on a GPU, by one CUDA kernel. Needs CuPy. To import this module is to register it."""

import cupy
import numpy as np
import torch
from torch import Tensor

from rcnn_backend.engines.convolution import CHANNELS_LAST
from rcnn_backend.operators.gpu import kernels

TYPES = {torch.float16: np.dtype(np.float16), torch.float32: np.dtype(np.float32)}
THREADS = 256
VALUES = 8  # of a thread
ALIGNMENT = 16  # bytes: what a thread reads at once


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
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(x.device).cuda_stream)
        with torch.cuda.device(x.device), stream:
            kernel = kernels.load("quantize", f"quantize<{kernels.cpp_type(TYPES[x.dtype])}>")
            arguments = (x.data_ptr(), found.data_ptr(), np.float32(scale), count)
            kernel((-(-count // (THREADS * VALUES)),), (THREADS,), arguments)
    return found


torch.library.impl("rcnn::quantize", "CUDA", quantize)
