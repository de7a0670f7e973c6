"""The chain supports a head of another kind: with changes to six files it exports and runs in process and served."""

import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from .third_head.added import FILES

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
HEAD = Path(__file__).parent / "third_head"


def test_a_third_head_touches_six_files(tmp_path: Path) -> None:
    for folder in ("python_backend", "export/rcnn_export", "model_repository"):
        in_git = subprocess.run(
            ["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in in_git.stdout.split():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    assert len(FILES) <= 6
    for name, (text, is_added) in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.read_text() + text if is_added else text)
    sources = [
        tmp_path / "python_backend",
        tmp_path / "export",
        HEAD,
        HEAD.parent,
        ROOT / "client",
        sysconfig.get_path("purelib"),
    ]
    python = make_environment(tmp_path / "venv", list(map(str, sources)))
    done = subprocess.run(
        [python, HEAD / "answers.py", tmp_path / "repository"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def make_environment(folder: Path, sources: list[str]) -> Path:
    """Make a virtual environment with these folders on its path, which Triton's stubs use, too; returns its Python."""
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "sources.pth").write_text("".join(f"{source}\n" for source in sources))
    return folder / "bin" / "python"
