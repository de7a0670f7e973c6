"""The sizing tables: the page has the script's output, and the script computes the same as a calculation by hand."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def sizing(deploy: Path) -> ModuleType:
    """The module deploy/sizing.py."""
    spec = importlib.util.spec_from_file_location("sizing", deploy / "sizing.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_by_hand(sizing: ModuleType) -> None:
    # 100 / (38 x 0.7) = 3.76; 100 x 240 kB = 24 MB/s; 100 x 3,199,200 B = 320 MB/s; 100 x 2804 B; 0.58 s / 0.7
    assert sizing.row(100, 38.0) == ["100", "4", "1", "0.192", "2.56", "0.00224", "1"]
    # 10,000 / 70 = 142.9 GPUs, 17.9 hosts; 58 s of decoding a second / 0.7 = 82.9 cores
    assert sizing.row(10_000, 100.0) == ["10,000", "143", "18", "19.2", "256", "0.224", "83"]


def test_the_page_has_the_tables_of_the_script(sizing: ModuleType, deploy: Path) -> None:
    page = (deploy / "SIZING.md").read_text()
    found = page.partition("<!-- tables of sizing.py -->\n")[2].partition("\n<!-- end -->")[0]
    assert found == sizing.tables()


def test_ones_own_number(deploy: Path) -> None:
    command = [sys.executable, deploy / "sizing.py", "--per-gpu"]
    assert "| 10,000 | 143 | 18 |" in subprocess.run([*command, "100"], capture_output=True, text=True).stdout
    refused = subprocess.run([*command, "0"], capture_output=True, text=True)
    assert refused.returncode == 2 and "--per-gpu is 0.0, expected more than 0" in refused.stderr
