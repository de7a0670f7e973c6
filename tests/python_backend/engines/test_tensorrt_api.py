"""Every call of the builder and the runner exists in TensorRT 10, TensorRT 11 and TensorRT-RTX.

mypy checks them against the recorded API of each version: names, arguments and their types.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
API = ROOT / "tests" / "tensorrt_api"
CALLERS = ["tensorrt_package.py", "plan_build.py", "tensorrt.py"]


def check(version: str, *files: str | Path) -> subprocess.CompletedProcess[str]:
    cache = ROOT / ".mypy_cache" / f"tensorrt-{version}"
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", cache, *files],
        cwd=ROOT,
        env=dict(os.environ, MYPYPATH=str(API / version)),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("version", ["10.13", "11.0", "11.4", "rtx-1.7"])
def test_every_call_is_in_every_version(version: str) -> None:
    result = check(version, *(f"python_backend/rcnn_backend/engines/{name}" for name in CALLERS))
    assert result.returncode == 0, result.stdout


def test_what_the_runner_calls_is_in_the_runtime_alone() -> None:
    result = check("lean-11.4", "python_backend/rcnn_backend/engines/tensorrt.py")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", '"type[BuilderFlag]" has no attribute "FP16"'),
        ("config.get_calibration_profile()", 'has no attribute "get_calibration_profile"'),
        ("config.set_flag()", 'Missing positional argument "flag"'),
        ("config.clear_flag('TF32')", "incompatible type"),
    ],
)
def test_what_tensorrt_11_has_not_is_found(tmp_path: Path, line: str, message: str) -> None:
    """The first two exist in TensorRT 10 and were removed in TensorRT 11; the others are wrong in both."""
    path = tmp_path / "caller.py"
    path.write_text(
        "from rcnn_backend.engines.tensorrt_package import trt\n\n"
        f"def configure(config: trt.IBuilderConfig) -> None:\n    {line}\n"
    )
    result = check("11.0", path)
    assert result.returncode == 1 and message in result.stdout, result.stdout
    is_in_10 = "FP16" in line or "calibration" in line
    assert (check("10.13", path).returncode == 0) == is_in_10
