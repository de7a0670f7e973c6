"""Finds, checks and prepares the tritonserver of the nvidia-pytriton wheel or of the system.

The wheel is never imported. Only its files are used: the server, the libraries that it needs, the
Python backend, and one stub for each Python version (the program that runs a ``model.py``). Without
the wheel, the ``tritonserver`` on PATH is used, as in NVIDIA's images, with that server's own backends.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from rcnn_backend.errors import ServerError
from rcnn_backend.server.numpy_version import check_numpy_1
from rcnn_backend.server.paths import check_plain, check_separators

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
# With these settings, glibc's malloc returns the memory of a rare large batch to the system, and threads share the
# memory of small batches. (A lower threshold would be slower, because each batch would request its memory again.)
MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}


@dataclass(frozen=True)
class TritonInstall:
    """Where the parts of a tritonserver are.

    ``stub``: it is in the ``python_backend`` folder if the server has all its backends in place.
    """

    server: Path
    libraries: Path
    python_backend: Path
    stub: Path

    @property
    def has_backends(self) -> bool:
        """Whether the folder that holds the Python backend is the server's complete ``--backend-directory``."""
        return self.stub.parent == self.python_backend


def check_engine_packages() -> None:
    """Refuses to serve if no installed package can run a detector's networks and operators.

    Raises:
        ServerError: there is no such package; the message names the extra to install.
    """
    if not any(map(PathFinder.find_spec, ("openvino", "cupy"))):
        raise ServerError(
            f"no engine is installed for {sys.executable}: run `pip install 'rcnn-backend[cpu]'`, or "
            "`pip install 'rcnn-backend[gpu]'` on a host with an NVIDIA GPU"
        )


def find_triton() -> TritonInstall:
    """Finds the server of the wheel in the environment of the running Python, or else the one on PATH.

    Raises:
        ServerError: neither exists, or the stub cannot work in this environment.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return _find_on_path()
    package = Path(spec.submodule_search_locations[0])
    triton = package / "tritonserver"
    install = TritonInstall(
        server=triton / "bin" / "tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        python_backend=triton / "backends" / "python",
        stub=triton / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub",
    )
    if not install.stub.is_file():
        versions = sorted(path.name for path in install.stub.parent.parent.glob("*"))
        raise ServerError(
            f"this Python is {PYTHON_VERSION}, and the installed tritonserver has a stub for "
            f"{', '.join(versions) or 'none'}: use Python 3.10, 3.11 or 3.12"
        )
    check_separators(Path(sys.executable).parent, install.libraries)
    check_numpy_1()
    _check_python3()
    return install


def _find_on_path() -> TritonInstall:
    """Finds the server on PATH, which must have ``lib/`` and ``backends/`` next to its ``bin/``."""
    server = shutil.which("tritonserver")
    if server is None:
        raise ServerError(
            f"tritonserver is not installed for {sys.executable}, and there is none on PATH: run "
            "`pip install nvidia-pytriton==0.7.0`, the wheel that contains it"
        )
    root = Path(server).resolve().parents[1]
    python_backend = root / "backends" / "python"
    stub = python_backend / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServerError(
            f"{server} has no Python backend: there is no {stub}; use an image of Triton that has one"
        )
    check_separators(Path(sys.executable).parent, root)
    check_plain(root)
    _check_python3()
    return TritonInstall(Path(server).resolve(), root / "lib", python_backend, stub)


def _check_python3() -> None:
    """Checks the first ``python3`` on the server's PATH, because the stub uses its site-packages."""
    python3 = Path(sys.executable).with_name("python3")
    if python3.resolve() != Path(sys.executable).resolve():
        raise ServerError(
            f"{python3} is not {sys.executable}, and Triton's Python models use the packages of `python3`: "
            "install rcnn-backend in a virtual environment and run its rcnn-serve"
        )


def prepare_backends(install: TritonInstall, folder: Path) -> Path:
    """A ``--backend-directory``: the server's own, or ``folder/backends`` with Triton's Python backend and ours.

    The files are copied, because Triton refuses a backend library that is a link out of the directory.
    """
    if install.has_backends:
        return install.python_backend.parent
    backends = folder / "backends"
    here = Path(__file__).parents[1]
    ours = here / "backends" if (here / "backends").is_dir() else here.parent / "backends"
    shutil.copytree(ours, backends, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(install.python_backend, backends / "python")
    stub = backends / "python" / install.stub.name
    shutil.copyfile(install.stub, stub)
    stub.chmod(0o755)
    return backends


def server_environment(install: TritonInstall, backends: Path, folder: Path) -> dict[str, str]:
    """The environment variables of the server, which its stubs inherit.

    The wheel's libraries have unique names (with a hash), so that they do not replace a library
    that a model loads. Of the library folder of this Python, only libpython is put on the path.

    Raises:
        ServerError: a library that the server or the stub links is missing.
    """
    libraries = [install.libraries]
    libpython = f"libpython{PYTHON_VERSION}.so.1.0"
    for place in (sysconfig.get_config_var("LIBDIR") or "", Path(sys.base_prefix) / "lib"):
        if Path(place, libpython).is_file():
            libraries.append(folder / "lib")
            libraries[-1].mkdir()
            (libraries[-1] / libpython).symlink_to(Path(place, libpython))
            break
    environment = MALLOC | os.environ
    search = [*map(str, libraries), environment.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = ":".join(filter(None, search))
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', os.defpath)}"
    for program in (install.server, backends / "python" / install.stub.name):
        _check_libraries(program, environment)
    return environment


def _check_libraries(program: Path, environment: dict[str, str]) -> None:
    """Checks that the loader finds all libraries of a program, as ``ldd`` does."""
    tracing = {**environment, "LD_TRACE_LOADED_OBJECTS": "1"}
    traced = subprocess.run([program], env=tracing, capture_output=True, text=True, errors="replace")
    lines = (traced.stdout + traced.stderr).splitlines()
    missing = sorted({line.split(" => ")[0].strip() for line in lines if "not found" in line})
    libpython = [name for name in missing if re.match(r"libpython\d", name)]
    if libpython:
        raise ServerError(
            f"{libpython[0]} is missing: Triton's Python models need the shared library of Python "
            f"{PYTHON_VERSION}, which {sys.executable} does not have. Run "
            f"`apt install libpython{PYTHON_VERSION}` (`dnf install python{PYTHON_VERSION}-libs`), "
            "or use a Python built with --enable-shared, as uv's and conda's are"
        )
    if missing:
        raise ServerError(
            f"{program.name} cannot start on this system, because libraries are missing: {'; '.join(missing)}"
        )
