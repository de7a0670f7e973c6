"""A number by which the process of a model instance shows that it executes, and that it goes on.

It lies in shared memory: a step writes it in no time, and ``rcnn-serve`` can read it when the step hangs.
"""

import mmap
import os
import struct
from pathlib import Path

VARIABLE = "RCNN_EXECUTIONS"  # of the environment: how the paths of the files begin. The process id ends them
NUMBER = struct.Struct("=Q")


class Executions:
    """A context for each execution. It adds 1 to the number at the start and at the end, so it is odd in between.

    Without the variable nobody else sees the number.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self) -> None:
        self._count = 0
        self._shared = _map_number(os.environ.get(VARIABLE, ""))

    def __enter__(self) -> None:
        self._add()

    def __exit__(self, *_: object) -> None:
        self._add()

    def _add(self) -> None:
        self._count += 1
        NUMBER.pack_into(self._shared, 0, self._count)


def _map_number(prefix: str) -> mmap.mmap:
    if not prefix:
        return mmap.mmap(-1, NUMBER.size)
    with Path(f"{prefix}{os.getpid()}").open("wb+") as file:
        # Takes the room now: without any, this is an error, and writing to the map would be a SIGBUS.
        file.write(bytes(NUMBER.size))
        file.flush()
        return mmap.mmap(file.fileno(), NUMBER.size)


def read_executions(prefix: str, pid: int) -> int:
    """The number of a process; 0 where it has none."""
    try:
        number: int = NUMBER.unpack(Path(f"{prefix}{pid}").read_bytes())[0]
    except (OSError, struct.error):
        return 0
    return number


def remove_executions(prefix: str, pid: int) -> None:
    """Removes the number of a process that has ended."""
    Path(f"{prefix}{pid}").unlink(missing_ok=True)
