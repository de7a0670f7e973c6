"""For which RoIAlign kernel a GPU has enough shared memory."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

TURING, AMPERE, HOPPER = 64 << 10, 99 << 10, 227 << 10  # bytes per block: compute capabilities 7.5, 8.6, 9.0


@pytest.mark.parametrize(
    ("size_hw", "sampling_ratio", "gpu", "expected"),
    [
        ((7, 7), 2, TURING, 25_216),  # 32 lanes, each with 49 bins of 16 bytes and 4 more bytes
        ((14, 14), 2, TURING, 0),
        ((14, 14), 2, AMPERE, 100_480),  # with 848 bytes of static memory, 48 bytes below the limit
        ((14, 14), 4, AMPERE, 0),  # the static memory exceeds the limit
        ((14, 14), 4, HOPPER, 100_480),
        ((28, 28), 2, HOPPER, 0),
        ((33, 1), 2, HOPPER, 0),  # no block can have so many warps
    ],
)
def test_channels_last_where_the_memory_is_enough(
    load_with_fakes: Callable[[str, dict[str, Any]], ModuleType],
    size_hw: tuple[int, int],
    sampling_ratio: int,
    gpu: int,
    expected: int,
) -> None:
    cupy = SimpleNamespace(ndarray=object)
    fakes = {"cupy": cupy, "rcnn_backend.operators.gpu.kernels": SimpleNamespace()}
    module = load_with_fakes("rcnn_backend.operators.gpu.roi_align", fakes)
    assert module.channels_last_shared_bytes(size_hw, sampling_ratio, gpu) == expected
