"""A small version of `make chaos`."""

import subprocess
import sys
from pathlib import Path

import pytest

# These tests compare times, and other tests may keep the processors busy.
pytestmark = [pytest.mark.long, pytest.mark.xdist_group("server"), pytest.mark.flaky(reruns=1)]

CHAOS = Path(__file__).resolve().parents[1] / "chaos" / "chaos.py"


@pytest.mark.parametrize(
    ("behind", "seed", "faults"),
    [
        ("client", 23, ["server killed", "step killed"]),
        ("client", 14, ["rcnn-serve killed", "step killed"]),
        ("nginx", 23, ["rcnn-serve killed", "nginx worker killed"]),
    ],
)
def test_every_answer_is_right_and_every_fault_recovered_from(
    behind: str, seed: int, faults: list[str], digits_repository: Path
) -> None:
    """With these seeds the first turn has both faults; in the first case a step is killed while its server restarts."""
    options = ["--seconds", "20", "--seed", str(seed), "--behind", behind, "--repository", digits_repository]
    command = [sys.executable, CHAOS, *options]
    result = subprocess.run([*command, "--faults", *faults], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(f"{fault}, server" in result.stdout for fault in faults)
    assert " 0 wrong, 0 lost" in result.stdout
