"""``rcnn-serve`` as a separate process, with its child processes."""

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
    """An ``rcnn-serve`` that is ready.

    ``ready_s``: seconds until it was ready. ``lines``: the lines that it had printed by then. ``urls``: by protocol.
    ``triton_pid``: process id of its tritonserver. ``executions``: path prefix of the files in which the steps count their
    executions. ``stubs``: the steps' processes, by process id.
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
        """The text that it has written to stderr so far."""
        return self.stderr_file.read_text(errors="replace")


@contextlib.contextmanager
def rcnn_serve(repository: Path, *options: str) -> Iterator[Serving]:
    """Runs ``rcnn-serve`` on free ports while the ``with`` block is open.

    Raises:
        RuntimeError: it did not start; the message contains its stderr.
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
    """The process id of the tritonserver that a command has started.

    Raises:
        ProcessLookupError: it has started none.
    """
    for pid in find_children(command_pid):
        with contextlib.suppress(OSError):
            program = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").partition("\0")[0]
            if program.endswith("/tritonserver"):
                return pid
    raise ProcessLookupError(f"process {command_pid} has no tritonserver")


def read_variable(pid: int, name: str) -> str:
    """The value of an environment variable with which a process was started; empty if it was not set."""
    variables = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    return next((each.partition("=")[2] for each in variables if each.startswith(f"{name}=")), "")


def stop(process: subprocess.Popen[str]) -> None:
    """Asks the command to end; after a timeout, kills it and its server."""
    process.terminate()
    try:
        process.communicate(timeout=EXIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
