"""Finds out which NumPy the server's Python models will import, from the files of that NumPy."""

import os
import re
import site
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

from rcnn_backend.errors import ServerError


def check_numpy_1() -> None:
    """Refuses NumPy 2, whose arrays Triton 24.10's stub reads as garbage, without an error.

    A NumPy on PYTHONPATH or in the user's own site-packages takes precedence over that of the environment.

    Raises:
        ServerError: NumPy is not installed or is not version 1; the message says where it is and how to fix that.
    """
    needed = "this tritonserver's Python models need NumPy 1"
    spec = PathFinder.find_spec("numpy")
    if spec is None or spec.origin is None:
        raise ServerError(
            f"NumPy is not installed for {sys.executable}, and {needed}: run `pip install 'numpy<2'`"
        )
    package = Path(spec.origin).parent
    version = read_version(package)
    if not version.startswith("1."):
        raise ServerError(
            f"NumPy is {version or 'broken'} in {package}, and {needed}: {_remedy(package.parent)}"
        )


def read_version(package: Path) -> str:
    """The version in ``numpy/version.py``; empty if there is none."""
    try:
        found = re.search(
            r"""version\s*=\s*["'](\d[^"']*)["']""", (package / "version.py").read_text(errors="replace")
        )
    except OSError:
        found = None
    return found[1] if found else ""


def _remedy(folder: Path) -> str:
    """How to get rid of the NumPy in a folder of ``sys.path``."""
    if folder in (Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")):
        return f"run `{sys.executable} -m pip install 'numpy<2'`"
    listed = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if folder.resolve() in (entry.resolve() for entry in listed):
        return f"remove {folder} from PYTHONPATH"
    if str(folder) == site.getusersitepackages():
        return "set PYTHONNOUSERSITE=1, or install rcnn-backend in a virtual environment"
    return "install rcnn-backend in a virtual environment, and start rcnn-serve from another folder"
