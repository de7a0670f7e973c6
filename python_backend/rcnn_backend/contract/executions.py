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

    Args:
        model: whose process it is; other steps find the number by that.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, model: str) -> None:
        self._count = 0
        self._shared = _map_number(os.environ.get(VARIABLE, ""), model)

    def __enter__(self) -> None:
        self._add()

    def __exit__(self, *_: object) -> None:
        self._add()

    def _add(self) -> None:
        self._count += 1
        NUMBER.pack_into(self._shared, 0, self._count)


def _map_number(prefix: str, model: str) -> mmap.mmap:
    """The number, in a file that names the model after it."""
    if not prefix:
        return mmap.mmap(-1, NUMBER.size)
    with Path(f"{prefix}{os.getpid()}").open("wb+") as file:
        # Takes the room now: without any, this is an error, and writing to the map would be a SIGBUS.
        file.write(bytes(NUMBER.size) + model.encode())
        file.flush()
        return mmap.mmap(file.fileno(), NUMBER.size)


def read_executions(prefix: str, pid: int) -> int:
    """The number of a process; 0 where it has none."""
    number, _ = _read(f"{prefix}{pid}")
    return number


def executions_of(model: str) -> dict[Path, int]:
    """The numbers of a model's instances, by path; none without the variable."""
    first = Path(os.environ.get(VARIABLE, ""))
    found = {path: _read(path) for path in first.parent.glob(f"{first.name}*")} if first.name else {}
    return {path: number for path, (number, name) in found.items() if name == model}


def _read(path: str | Path) -> tuple[int, str]:
    """A number and the model that its file names; 0 and an empty name without a file."""
    try:
        content = Path(path).read_bytes()
        return NUMBER.unpack_from(content)[0], content[NUMBER.size :].decode()
    except (OSError, struct.error):
        return 0, ""


def remove_executions(prefix: str, pid: int) -> None:
    """Removes the number of a process that has ended."""
    Path(f"{prefix}{pid}").unlink(missing_ok=True)
