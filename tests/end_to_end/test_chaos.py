"""A small version of `make chaos`."""

import subprocess
import sys
from pathlib import Path

import pytest

# Seconds are compared, and other tests may take the processors meanwhile.
pytestmark = [pytest.mark.long, pytest.mark.xdist_group("server"), pytest.mark.flaky(reruns=1)]

CHAOS = Path(__file__).resolve().parents[1] / "chaos" / "chaos.py"


@pytest.mark.parametrize(
    ("behind", "fault"),
    [
        ("client", "server killed"),
        ("client", "step killed"),
        ("nginx", "rcnn-serve killed"),
        ("nginx", "nginx worker killed"),
    ],
)
def test_every_answer_is_right_and_every_fault_recovered_from(
    behind: str, fault: str, digits_repository: Path
) -> None:
    options = ["--seconds", "10", "--behind", behind, "--repository", digits_repository]
    command = [sys.executable, CHAOS, *options]
    result = subprocess.run([*command, "--faults", fault], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{fault}, server" in result.stdout
    assert " 0 wrong, 0 lost" in result.stdout
