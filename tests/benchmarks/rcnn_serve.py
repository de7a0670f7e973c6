"""``rcnn-serve`` as a process of its own, with the processes below it."""

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rcnn_backend.contract.executions import VARIABLE
from rcnn_backend.server.addresses import PROTOCOLS
from rcnn_backend.server.stub_processes import Stub, find_children, find_stubs

MAIN = "import sys; from rcnn_backend.server.cli import main; sys.exit(main())"
EXIT_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Serving:
    """A command that is ready.

    ``ready_s``: how long that took. ``lines``: what it printed by then. ``urls``: by protocol. ``triton_pid``: of its
    tritonserver. ``executions``: where the steps tell how often they executed. ``stubs``: the steps, by process id.
    """

    process: subprocess.Popen[str]
    stderr_file: Path
    ready_s: float
    lines: list[str]
    urls: dict[str, str]
    triton_pid: int
    executions: str
    stubs: dict[int, Stub]

    @property
    def stderr(self) -> str:
        """What it has written there so far."""
        return self.stderr_file.read_text(errors="replace")


@contextlib.contextmanager
def rcnn_serve(repository: Path, *options: str) -> Iterator[Serving]:
    """Runs it on free ports while the block is open.

    Raises:
        RuntimeError: it does not start; the message is what it wrote to stderr.
    """
    command = [sys.executable, "-c", MAIN, str(repository), *options]
    command += [f"--{protocol}-port=0" for protocol in PROTOCOLS]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        stderr_file = Path(folder) / "stderr"
        with stderr_file.open("wb") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line.rstrip())
                if line.startswith("Serving "):
                    break
            else:
                raise RuntimeError(f"rcnn-serve does not start: {stderr_file.read_text(errors='replace')}")
            ready_s = time.monotonic() - began
            urls = dict(re.findall(rf"({'|'.join(PROTOCOLS)}) (\S+?:\d+)", lines[-1]))
            triton_pid = find_triton(process.pid)
            executions = read_variable(triton_pid, VARIABLE)
            stubs = find_stubs(triton_pid, executions)
            yield Serving(process, stderr_file, ready_s, lines, urls, triton_pid, executions, stubs)
        finally:
            stop(process)


def find_triton(command_pid: int) -> int:
    """The tritonserver that a command has started.

    Raises:
        ProcessLookupError: there is none.
    """
    for pid in find_children(command_pid):
        with contextlib.suppress(OSError):
            program = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").partition("\0")[0]
            if program.endswith("/tritonserver"):
                return pid
    raise ProcessLookupError(f"process {command_pid} has no tritonserver")


def read_variable(pid: int, name: str) -> str:
    """An environment variable of a process, as it was started; empty without."""
    variables = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    return next((each.partition("=")[2] for each in variables if each.startswith(f"{name}=")), "")


def stop(process: subprocess.Popen[str]) -> None:
    """Lets the command end, or kills it, and its server with it."""
    process.terminate()
    try:
        process.communicate(timeout=EXIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
