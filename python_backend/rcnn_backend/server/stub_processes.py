"""The processes that run a server's Python models: one a model instance.

Triton 24.10 starts none again that has died, and says that it is ready all the same.
"""

from pathlib import Path

ENDED = "ZX"  # zombie, dead
INSTANCE_ARGUMENT = 8  # of the stub's command line


def find_stubs(server_pid: int) -> dict[int, str]:
    """The name of the model instance that each stub of the server runs, by process id."""
    stubs = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            parent = int(_stat(pid)[1])
            arguments = (folder / "cmdline").read_text(errors="replace").split("\0")
        except (OSError, IndexError):  # it ended meanwhile
            continue
        if parent == server_pid and arguments[0].endswith("/triton_python_backend_stub"):
            stubs[pid] = arguments[INSTANCE_ARGUMENT]
    return stubs


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or only its parent's last look at it is missing."""
    try:
        return _stat(pid)[0] in ENDED
    except (OSError, IndexError):
        return True


def _stat(pid: int) -> list[str]:
    """State, parent and the rest of /proc/<pid>/stat, from behind the command's name on."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
