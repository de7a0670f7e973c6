"""A number by which the process of a model instance shows that it executes, and that it goes on; and its GPU.

They lie in shared memory: a step writes them in no time, and ``rcnn-serve`` can read them when the step hangs.
"""

import mmap
import os
import struct
from pathlib import Path

VARIABLE = "RCNN_EXECUTIONS"  # of the environment: how the paths of the files begin. The process id ends them
NUMBER = struct.Struct("=Q")
GPU = struct.Struct("=i")  # behind the number
ON_CPU = -1


class Executions:
    """A context for each execution. It adds 1 to the number at the start and at the end, so it is odd in between.

    Without the variable nobody else sees the number.

    Args:
        gpu: the one that the instance computes on, as CUDA numbers it; None for the CPU.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, gpu: int | None = None) -> None:
        self._count = 0
        told = GPU.pack(ON_CPU if gpu is None else gpu)
        self._shared = _map_number(os.environ.get(VARIABLE, ""), told)

    def __enter__(self) -> None:
        self._add()

    def __exit__(self, *_: object) -> None:
        self._add()

    def _add(self) -> None:
        self._count += 1
        NUMBER.pack_into(self._shared, 0, self._count)


def _map_number(prefix: str, told: bytes) -> mmap.mmap:
    if not prefix:
        return mmap.mmap(-1, NUMBER.size)
    with Path(f"{prefix}{os.getpid()}").open("wb+") as file:
        # Takes the room now: without any, this is an error, and writing to the map would be a SIGBUS.
        file.write(bytes(NUMBER.size) + told)
        file.flush()
        return mmap.mmap(file.fileno(), NUMBER.size)


def read_executions(prefix: str, pid: int) -> int:
    """The number of a process; 0 where it has none."""
    try:
        number: int = NUMBER.unpack_from(Path(f"{prefix}{pid}").read_bytes())[0]
    except (OSError, struct.error):
        return 0
    return number


def read_gpu(prefix: str, pid: int) -> int | None:
    """The GPU of a process; None where it computes on the CPU or has told nothing."""
    try:
        gpu: int = GPU.unpack_from(Path(f"{prefix}{pid}").read_bytes(), NUMBER.size)[0]
    except (OSError, struct.error):
        return None
    return None if gpu == ON_CPU else gpu


def remove_executions(prefix: str, pid: int) -> None:
    """Removes the number of a process that has ended."""
    Path(f"{prefix}{pid}").unlink(missing_ok=True)
