"""Which GPU failures are permanent. Each runs in its own process, because it may destroy the CUDA context."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu

FAIL = """
import os, sys
import cupy
from rcnn_backend.devices import Gpu

gpu = Gpu(0)
SOURCE = 'extern "C" __global__ void fail(int* p, int trap) { if (trap) __trap(); *p = 1; }'

def launch(address, trap=0, threads=1):
    cupy.RawKernel(SOURCE, "fail")((1,), (threads,), (cupy.uint64(address), cupy.int32(trap)))
    gpu.synchronize()

def capture():
    gpu.stream.begin_capture()
    try:
        gpu.synchronize()
    finally:
        gpu.stream.end_capture()

failures = {
    "illegal access": lambda: launch(0xDEAD0000000),
    "misaligned access": lambda: launch(cupy.zeros(4, "i").data.ptr + 1),
    "trap": lambda: launch(0, trap=1),
    "no memory": lambda: cupy.empty(1 << 42, "b"),
    "too many threads": lambda: launch(cupy.zeros(4, "i").data.ptr, threads=4096),
    "capture": capture,
}
try:
    with gpu.active():
        failures[sys.argv[1]]()
    raise SystemExit("nothing failed")
except Exception as error:
    print(type(error).__name__, gpu.is_usable(), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("failure", "is_usable"),
    [
        ("illegal access", False),
        ("misaligned access", False),
        ("trap", False),
        ("no memory", True),
        ("too many threads", True),
        ("capture", True),
    ],
)
def test_whether_the_gpu_is_usable_after(failure: str, is_usable: bool) -> None:
    process = subprocess.run(
        [sys.executable, "-c", FAIL, failure], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split()[1] == str(is_usable)
