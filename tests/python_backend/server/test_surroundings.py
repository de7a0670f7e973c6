"""What rcnn-serve checks in its environment before it reports that it serves: shared memory, NumPy."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from rcnn_backend.errors import ServerError
from rcnn_backend.server import numpy_version
from rcnn_backend.server.cli import _raise_open_files
from rcnn_backend.server.local_server import running_server
from rcnn_backend.server.numpy_version import check_numpy_1, read_version
from rcnn_backend.server.shared_memory import check_shared_memory


def shared_memory(mebibytes: int) -> os.statvfs_result:
    return os.statvfs_result([4096, 4096, mebibytes << 8, mebibytes << 8, mebibytes << 8, 0, 0, 0, 0, 255])


def test_a_small_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: shared_memory(64))
    with pytest.raises(
        ServerError, match=r"/dev/shm has 64 MiB free, and the process of a model needs at least 65: .*=1g`"
    ):
        check_shared_memory(1)
    with pytest.raises(
        ServerError, match=r"the 20 processes of the models need at least 1300: give it 3 GiB, .*=3g`"
    ):
        check_shared_memory(20)
    monkeypatch.setattr(os, "statvfs", lambda path: shared_memory(1024))
    check_shared_memory(7)


def test_the_command_refuses_at_once(tmp_path: Path) -> None:
    """In a separate mount namespace with as little shared memory as a container has by Docker's default."""
    server = Path(sys.executable).with_name("rcnn-serve")
    script = 'mount -t tmpfs -o size=64m tmpfs /dev/shm || exit 77; exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", server, tmp_path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr}")
    assert done.returncode == 1
    assert "rcnn-serve: /dev/shm has 64 MiB free" in done.stderr and "docker run --shm-size=1g" in done.stderr


def write_numpy(folder: Path, version: str) -> None:
    (folder / "numpy").mkdir(parents=True)
    (folder / "numpy" / "__init__.py").touch()
    (folder / "numpy" / "version.py").write_text(version)


def test_a_numpy_2_in_front_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_numpy_1()
    write_numpy(tmp_path, 'version = "2.3.1"\n__version__ = version\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ServerError, match=rf"NumPy is 2\.3\.1 in {tmp_path}/numpy.* another folder"):
        check_numpy_1()
    monkeypatch.setenv("PYTHONPATH", f"/absent:{tmp_path}/")
    with pytest.raises(ServerError, match=rf"remove {tmp_path} from PYTHONPATH"):
        check_numpy_1()
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setattr(numpy_version.site, "getusersitepackages", lambda: str(tmp_path))
    with pytest.raises(ServerError, match="set PYTHONNOUSERSITE=1"):
        check_numpy_1()
    monkeypatch.setattr(numpy_version.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ServerError, match=r"-m pip install 'numpy<2'`"):
        check_numpy_1()


def test_a_numpy_that_is_missing_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ServerError, match="NumPy is not installed for "):
        check_numpy_1()
    write_numpy(tmp_path, "")
    with pytest.raises(ServerError, match="NumPy is broken in"):
        check_numpy_1()
    assert read_version(tmp_path) == ""


def test_a_server_without_an_engine_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rcnn_backend.server.triton_install.PathFinder.find_spec", lambda name: None)
    monkeypatch.setattr("rcnn_backend.server.local_server.find_triton", lambda: None)
    with pytest.raises(ServerError, match=r"no engine is installed for .*'rcnn-backend\[cpu\]'"):
        running_server(tmp_path).__enter__()


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, 1 << 20), (65536, 1 << 20)),
        ((1024, resource.RLIM_INFINITY), (65536, resource.RLIM_INFINITY)),
        ((100_000, 1 << 20), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_the_server_may_open_as_many_files_as_the_user_may(
    limits: tuple[int, int], raised: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: calls.append(limit))
    _raise_open_files()
    assert calls == ([raised] if raised else [])
