"""Every CUDA kernel compiles for the GPUs in use, on a machine without one."""

import itertools
import re
from pathlib import Path

import pytest
import rcnn_backend

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC, which the CUDA build of torch brings")

SOURCES = Path(rcnn_backend.__file__).parent / "operators/gpu/cuda"
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
OPTIONS = ["-std=c++17", "-ftz=true", "--device-as-default-execution-space"]  # CuPy adds the last two
TYPES = ["float", "Half"]
POOLS = ["7, 7, 2", "14, 14, 2", "7, 7, 1", "7, 7, 3", "7, 7, 4"]
KERNELS = {
    "preprocess": [f"resize_normalize_pad<{type_}>" for type_ in TYPES],
    "nms": ["sort_candidates", "mark_overlaps", "suppress", "gather_proposals"],
    "roi_align": [
        *(f"pool_planar<{type_}, {pool}>" for type_, pool in itertools.product(TYPES, POOLS)),
        *(f"pool_channels_last<{type_}, {pool}>" for type_, pool in itertools.product(TYPES, POOLS)),
        *(f"pool_adaptive<{type_}>" for type_ in TYPES),
    ],
    "detections": ["suppress_classes", "gather_detections"],
    "samples": ["take_samples"],
}


def compile_kernels(source: Path, expressions: list[str], architecture: str) -> bytes:
    """The machine code; fails with the compiler's log."""
    _, program = nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], [])
    for expression in expressions:
        nvrtc.nvrtcAddNameExpression(program, expression.encode())
    options = [option.encode() for option in (*OPTIONS, f"-arch={architecture}")]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytearray(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    assert log.strip(b"\0 \n") == b"", log.decode()  # a warning is a mistake too
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    code = bytearray(size)
    nvrtc.nvrtcGetCUBIN(program, code)
    return bytes(code)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles(name: str, architecture: str) -> None:
    assert compile_kernels(SOURCES / f"{name}.cu", KERNELS[name], architecture)[:4] == b"\x7fELF"


def test_no_kernel_is_forgotten_and_each_file_stands_alone() -> None:
    assert {path.stem for path in SOURCES.glob("*.cu")} == set(KERNELS)
    for name, expressions in KERNELS.items():
        code = (SOURCES / f"{name}.cu").read_text()
        defined = re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(", code)
        assert {expression.split("<")[0] for expression in expressions} == set(defined)
        assert "#include" not in code
