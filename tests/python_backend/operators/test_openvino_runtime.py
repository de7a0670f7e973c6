"""On which processors OpenVINO may compute in INT8."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rcnn_backend.operators import openvino_runtime
from rcnn_backend.operators.openvino_runtime import sums_int8_exactly


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    sums_int8_exactly.cache_clear()
    yield
    sums_int8_exactly.cache_clear()


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fma avx2 avx512f avx512_vnni", True),
        ("x86_64", "fma avx2 avx_vnni", True),
        ("x86_64", "fma avx2 avx512f avx512bw", False),
        ("x86_64", "fma avx2", False),
        ("x86_64", None, False),
        ("aarch64", "asimd", True),
    ],
)
def test_x86_needs_vnni_to_sum_int8_exactly(
    machine: str, flags: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    if flags:
        info.write_text(
            f"processor : 0\nmodel name : CPU with avx_vnni in its name\nflags\t\t: fpu {flags}\n\n"
        )
    monkeypatch.setattr(openvino_runtime.platform, "machine", lambda: machine)
    monkeypatch.setattr(openvino_runtime, "CPU_INFO", info)
    assert sums_int8_exactly() is expected
