"""Gives a server its own small disk and its own small /dev/shm, so that a fault fills only these."""

import contextlib
import functools
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

DISK, SHARED_MEMORY = "256m", "512m"
MISSING = "only root can mount the disk that this fault fills"


@contextlib.contextmanager
def own_disks(folder: Path) -> Iterator[Path]:
    """Mounts a small disk at ``folder`` and another one at its folder ``shm``; both are plain folders if mounting fails."""
    with contextlib.ExitStack() as stack:
        for place, size in ((folder, DISK), (folder / "shm", SHARED_MEMORY)):
            place.mkdir(parents=True, exist_ok=True)
            options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
            if subprocess.run(["mount", *options], capture_output=True).returncode == 0:
                stack.callback(
                    functools.partial(subprocess.run, ["umount", "--lazy", str(place)], check=False)
                )
        yield folder


def with_own_shared_memory(command: Sequence[str | Path], folder: Path) -> list[str | Path]:
    """The command with the folder's ``shm`` as its /dev/shm, in the same process; unchanged if ``shm`` is not a disk."""
    if not (folder / "shm").is_mount():
        return [*command]
    script = 'mount --bind "$0" /dev/shm && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, folder / "shm", *command]
