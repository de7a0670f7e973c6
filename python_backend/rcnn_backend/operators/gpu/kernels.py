"""Compiles the CUDA kernels of ``cuda/*.cu`` with CuPy, one template instantiation at a time."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import cupy

SOURCES = Path(__file__).parent / "cuda"
INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)
OPTIONS = ("-std=c++17",)
CPP_TYPES = {"float32": "float", "float16": "Half"}
DEFAULT_SHARED_BYTES = 48 * 1024  # a block may use more only if its kernel requests it


def load(source: str, expression: str, shared_bytes: int = 0) -> cupy.RawKernel:
    """The kernel of ``cuda/<source>.cu`` that the C++ ``expression`` names, compiled for the current device.

    Args:
        source: a file's name without its extension.
        expression: for example ``pool_planar<Half, 7, 7, 2>``.
        shared_bytes: the dynamic shared memory that a block will use.

    Raises:
        ValueError: the device has less shared memory than that.
    """
    device = cupy.cuda.runtime.getDevice()
    kernel = _compile(source, expression, device)
    if shared_bytes > DEFAULT_SHARED_BYTES:
        _allow_shared(kernel, expression, shared_bytes, device)
    return kernel


def max_shared_bytes() -> int:
    """The shared memory that a block can have on the current device, static and dynamic together."""
    return _max_shared_bytes(cupy.cuda.runtime.getDevice())


def cpp_type(dtype: Any) -> str:
    """The name of a floating-point type in the kernels.

    Raises:
        ValueError: the type is neither float32 nor float16.
    """
    try:
        return CPP_TYPES[str(dtype)]
    except KeyError:
        raise ValueError(f"the kernels take float32 or float16, not {dtype}: convert the array") from None


def read_source(source: str) -> str:
    """The code of ``cuda/<source>.cu``, with each ``#include`` replaced by the header's content.

    CuPy's cache on disk does not notice changes in included headers.
    """
    code = (SOURCES / f"{source}.cu").read_text()
    return INCLUDE.sub(lambda found: (SOURCES / found[1]).read_text(), code)


@cache
def _compile(source: str, expression: str, device: int) -> cupy.RawKernel:
    module = cupy.RawModule(code=read_source(source), options=OPTIONS, name_expressions=(expression,))
    return module.get_function(expression)


@cache
def _max_shared_bytes(device: int) -> int:
    return int(cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"])


@cache
def _allow_shared(kernel: cupy.RawKernel, expression: str, shared_bytes: int, device: int) -> None:
    needed, max_bytes = shared_bytes + kernel.shared_size_bytes, _max_shared_bytes(device)
    if needed > max_bytes:
        raise ValueError(
            f"{expression} needs {needed} bytes of shared memory per block for these shapes, but GPU {device} "
            f"has {max_bytes}: export the detector with fewer proposals or detections per image"
        )
    kernel.max_dynamic_shared_size_bytes = max(shared_bytes, kernel.max_dynamic_shared_size_bytes)
