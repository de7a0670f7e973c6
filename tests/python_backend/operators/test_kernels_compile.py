"""Every CUDA kernel compiles for the GPUs in use, even on a machine without a GPU."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import rcnn_backend

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVRTC, which the CUDA build of torch brings")

SOURCES = Path(rcnn_backend.__file__).parent / "operators/gpu/cuda"
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
OPTIONS = ["-std=c++17", "-ftz=true", "--device-as-default-execution-space"]  # CuPy adds the last two options
TYPES = ["float", "Half"]
POOLS = ["7, 7, 2", "14, 14, 2", "7, 7, 1", "7, 7, 3", "7, 7, 4"]
MAPS = ["float, 1", "float, 4", "Half, 1", "Half, 8"]  # type, and channels of a thread
BLOCKS = ["256, 128", "128, 128", "128, 64", "64, 128", "64, 64"]  # rows and columns
KERNELS = {
    "preprocess": [f"resize_normalize_pad<{type_}>" for type_ in TYPES],
    "quantize": [f"quantize<{type_}>" for type_ in TYPES],
    "convolution_int8": [f"convolution_int8<{block}>" for block in BLOCKS],
    "nms": ["sort_candidates", "mark_overlaps", "suppress", "gather_proposals"],
    "roi_align": [
        *(f"pool_planar<{type_}, {pool}>" for type_, pool in itertools.product(TYPES, POOLS)),
        *(f"pool_channels_last<{type_}, {pool}>" for type_, pool in itertools.product(TYPES, POOLS)),
        *(f"pool_adaptive<{type_}>" for type_ in TYPES),
    ],
    "detections": ["suppress_classes", "gather_detections"],
    "keypoints": [f"find_keypoints<{type_}>" for type_ in TYPES],
    "samples": ["take_samples"],
    "feature_maps": [
        *(
            f"max_pool<{map_}, {window}>"
            for map_, window in itertools.product(MAPS, ["3, 3", "1, 1", "4, 2"])
        ),
        *(f"upsample<{map_}>" for map_ in MAPS),
    ],
    "best_boxes": [
        f"{kernel}<{type_}>"
        for kernel, type_ in itertools.product(["count_logits", "gather_logits", "decode_best"], TYPES)
    ],
    "paste_masks": ["find_edges<false>", "find_edges<true>"],
}


@pytest.fixture
def read_source(load_with_fakes: Callable[[str, dict[str, Any]], ModuleType]) -> Callable[[str], str]:
    """The function that reads the code that CuPy compiles."""
    cupy = SimpleNamespace(RawKernel=object)
    reader: Callable[[str], str] = load_with_fakes(
        "rcnn_backend.operators.gpu.kernels", {"cupy": cupy}
    ).read_source
    return reader


def compile_kernels(code: str, expressions: list[str], architecture: str) -> bytes:
    """The machine code; fails with the compiler's log."""
    _, program = nvrtc.nvrtcCreateProgram(code.encode(), b"kernels.cu", 0, [], [])
    for expression in expressions:
        nvrtc.nvrtcAddNameExpression(program, expression.encode())
    options = [option.encode() for option in (*OPTIONS, f"-arch={architecture}")]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytearray(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert error == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    assert log.strip(b"\0 \n") == b"", log.decode()  # warnings are mistakes, too
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    machine_code = bytearray(size)
    nvrtc.nvrtcGetCUBIN(program, machine_code)
    return bytes(machine_code)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_compiles(read_source: Callable[[str], str], name: str, architecture: str) -> None:
    assert compile_kernels(read_source(name), KERNELS[name], architecture)[:4] == b"\x7fELF"


def test_no_kernel_is_forgotten_and_each_file_needs_only_headers_beside_it(
    read_source: Callable[[str], str],
) -> None:
    assert {path.stem for path in SOURCES.glob("*.cu")} == set(KERNELS)
    for name, expressions in KERNELS.items():
        code = read_source(name)
        defined = re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(", code)
        assert {expression.split("<")[0] for expression in expressions} == set(defined)
        assert "#include" not in code


def test_what_files_share_is_written_once() -> None:
    definition = re.compile(
        r"^(?:template <.*> )?(?:struct(?: alignas\([^{]*\))?|__device__ [\w ]+?) (\w+(?:<\w+>)?)[ (]",
        re.MULTILINE,
    )
    files = [*SOURCES.glob("*.cu*")]
    names = [name for path in files for name in set(definition.findall(path.read_text()))]
    assert {"overlap", "Half", "clip", "from_float<Half>"} <= set(names)
    assert {name for name in names if names.count(name) > 1} == {"clip"}  # one for a number, one for a box


def test_a_changed_header_is_other_code(
    read_source: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy looks up compiled kernels by their code."""
    before = read_source("nms")
    read_text = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path: read_text(path) + "// changed\n" * (path.suffix == ".cuh")
    )
    assert read_source("nms") != before
