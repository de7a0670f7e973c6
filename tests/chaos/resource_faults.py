"""Faults of resources: a full disk or /dev/shm, or no more memory or file descriptors."""

import contextlib
import functools
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

from own_disks import MISSING
from process_faults import Find, step, triton, wait_for
from world import CannotHappenHereError, Fault, World

MORE_BYTES = 4 << 20  # memory that a process can still get
BLOCK = bytes(1 << 20)
# The memory controller of cgroup v2 and of v1, and its limit.
CGROUPS = {Path("/sys/fs/cgroup"): "memory.max", Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes"}


@contextlib.contextmanager
def fill(part: str, world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Fills the disk of a part of the server's folder."""
    disk = world.servers[index].folder / part
    if not disk.is_mount():
        raise CannotHappenHereError(MISSING)
    filler = disk / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(BLOCK):
                pass
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextlib.contextmanager
def limit(kind: int, find: Find, world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Limits a resource of the process to little more than it has."""
    pid = wait_for(find, world, index, rng)
    soft, hard = resource.prlimit(pid, kind)
    if kind == resource.RLIMIT_NOFILE:
        most = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    else:
        most = (
            int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MORE_BYTES
        )
    resource.prlimit(pid, kind, (most, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, (soft, hard))


@contextlib.contextmanager
def run_out_of_memory(find: Find, world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Moves the process to its own cgroup with little memory. When it needs more, the kernel kills it."""
    root, name = next(
        ((root, name) for root, name in CGROUPS.items() if any(root.glob(f"*/{name}"))), (None, "")
    )
    if root is None or not os.access(root, os.W_OK):
        raise CannotHappenHereError("only root can limit memory, by a cgroup that has a memory controller")
    pid = wait_for(find, world, index, rng)
    group = root / f"rcnn-chaos-{pid}"
    group.mkdir()
    try:
        (group / name).write_text(str(MORE_BYTES))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        with contextlib.suppress(OSError):  # the process was killed
            (root / "cgroup.procs").write_text(str(pid))
        with contextlib.suppress(OSError):
            group.rmdir()


FAULTS: dict[str, Fault] = {
    "shared memory full": functools.partial(fill, "shm"),
    "disk full": functools.partial(fill, ""),
    "step out of memory": functools.partial(run_out_of_memory, step),
    "step refused memory": functools.partial(limit, resource.RLIMIT_AS, step),
    "server refused memory": functools.partial(limit, resource.RLIMIT_AS, triton),
    "server out of files": functools.partial(limit, resource.RLIMIT_NOFILE, triton),
    "step out of files": functools.partial(limit, resource.RLIMIT_NOFILE, step),
}
