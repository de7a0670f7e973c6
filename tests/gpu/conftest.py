"""Tests on a GPU: CuPy kernels beside torchvision on the same device."""

from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    import cupy

    HAS_GPU = cupy.cuda.runtime.getDeviceCount() > 0
except Exception:  # no CuPy, no driver or no device: each with an exception of its own
    HAS_GPU = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips this folder's tests where there is no GPU."""
    for item in items:
        if not HAS_GPU and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU and CuPy"))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """New arrays hold NaNs, so that a value nobody wrote shows."""
    if HAS_GPU:
        blocks = [cupy.full(1 << bits, 0xFF, cupy.uint8) for bits in range(9, 27)]
        del blocks
    yield
