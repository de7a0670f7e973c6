"""Resident memory of a server's processes over time, and which of them grew."""

import os
import statistics
import subprocess
import threading
import time
from pathlib import Path

from rcnn_backend.server.local_server import RunningServer
from rcnn_backend.server.stub_processes import find_stubs
from rich.table import Table

GROWTH, SLACK_MIB = 0.02, 3.0  # allowed growth of a process between the first and the last fifth


class Memory:
    """Samples the memory of a server every ``every_s`` seconds while the ``with`` block runs."""

    def __init__(self, server: RunningServer, every_s: float) -> None:
        self._server, self._every_s = server, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.mib: dict[float, dict[str, float]] = {}

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        started = time.monotonic()
        while not self._stop.wait(self._every_s):
            self.mib[time.monotonic() - started] = memory_mib(self._server)

    def grown(self, settled_s: float, growth: float = GROWTH) -> list[str]:
        """A line for each process or GPU that uses more in the last fifth of the time since ``settled_s`` than in the
        first fifth. Medians are compared, because a large picture increases a process's memory for a moment.
        """
        settled = [memory for second, memory in self.mib.items() if second >= settled_s]
        fifth = max(1, len(settled) // 5)
        lines = []
        for name in settled[0] if len(settled) > 1 else ():
            first, last = (
                statistics.median(memory.get(name, 0) for memory in part)
                for part in (settled[:fifth], settled[-fifth:])
            )
            if last > first * (1 + growth) + SLACK_MIB:
                lines.append(f"{name} grew from {first:.0f} to {last:.0f} MiB")
        return lines

    def table(self) -> Table:
        """A table of about twelve of the samples."""
        table = Table(title="Memory in MiB")
        names = list(next(iter(self.mib.values()), {}))
        table.add_column("second", justify="right")
        for name in names:
            table.add_column(name, justify="right")
        shown = list(self.mib.items())
        for second, memory in shown[:: max(1, len(shown) // 12)]:
            table.add_row(f"{second:.0f}", *(f"{memory.get(name, 0):.0f}" for name in names))
        return table


def memory_mib(server: RunningServer) -> dict[str, float]:
    """Resident memory of the server and of each model instance's process, and the memory of each GPU."""
    memory = {}
    executions = server.hang_watch.executions if server.hang_watch else ""
    stubs = {pid: stub.name for pid, stub in find_stubs(server.process.pid, executions).items()}
    for pid, name in {server.process.pid: "tritonserver", **stubs}.items():
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:  # the process has ended
            continue
        memory[name] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    try:
        query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return memory
    return memory | {f"GPU {index}": float(used) for index, used in (line.split(",") for line in lines)}
