"""A counter that shows whether the process of a model instance is executing and makes progress; and its GPU.

Both are in shared memory: a step writes them at almost no cost, and ``rcnn-serve`` can read them when the step hangs.
"""

import mmap
import os
import struct
from pathlib import Path

VARIABLE = "RCNN_EXECUTIONS"  # environment variable: the path of each file, without the process id at its end
NUMBER = struct.Struct("=Q")
GPU = struct.Struct("=i")  # after the number
ON_CPU = -1


class Executions:
    """A context for each execution. It adds 1 to the number at the start and at the end: in between, it is odd.

    If the environment variable is not set, no other process can read the number.

    Args:
        gpu: CUDA's number of the GPU that the instance computes on; None for the CPU.

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
        # Allocates the space now: if there is none, this is an error here and not a SIGBUS on a later write to the map.
        file.write(bytes(NUMBER.size) + told)
        file.flush()
        return mmap.mmap(file.fileno(), NUMBER.size)


def read_executions(prefix: str, pid: int) -> int:
    """The number of a process; 0 if it has none."""
    try:
        number: int = NUMBER.unpack_from(Path(f"{prefix}{pid}").read_bytes())[0]
    except (OSError, struct.error):
        return 0
    return number


def read_gpu(prefix: str, pid: int) -> int | None:
    """The GPU of a process; None if it computes on the CPU or has not written its GPU."""
    try:
        gpu: int = GPU.unpack_from(Path(f"{prefix}{pid}").read_bytes(), NUMBER.size)[0]
    except (OSError, struct.error):
        return None
    return None if gpu == ON_CPU else gpu


def remove_executions(prefix: str, pid: int) -> None:
    """Removes the file of a process that has ended."""
    Path(f"{prefix}{pid}").unlink(missing_ok=True)
