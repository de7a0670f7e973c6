"""The demo of `make demo` prints a table with digits, draws a picture, and leaves no process behind."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def processes_of(folder: Path) -> list[str]:
    """The command lines of processes that contain ``folder``."""
    lines = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # the process has ended meanwhile
            continue
        if str(folder) in line:
            lines.append(line)
    return lines


@pytest.mark.xdist_group("client")
def test_demo(digits_repository: Path, tmp_path: Path) -> None:
    picture = ROOT / "export" / "samples" / "pictures" / "digits_held-out_001117.jpg"
    out = tmp_path / "demo.png"
    demo = [sys.executable, str(ROOT / "client" / "examples" / "demo.py")]
    run = subprocess.run(
        [*demo, "--repository", str(digits_repository), "--model", "digits", "--out", str(out), str(picture)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    with Image.open(picture) as sent, Image.open(out) as drawn:
        assert drawn.size == sent.size
        assert np.any(np.asarray(drawn.convert("RGB")) != np.asarray(sent.convert("RGB")))
    found = {line.split()[0] for line in run.stdout.splitlines() if line.split()}
    assert found & set("0123456789"), run.stdout
    assert not processes_of(digits_repository)
