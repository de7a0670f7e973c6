"""Measures the cores that each kind of process on the host uses under load, and how busy the GPUs are."""

import bisect
import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rcnn_backend.server.stub_processes import cpu_seconds, find_children

CLIENT, TRITON, STEPS = "client", "tritonserver", "steps"
LOOK_S = 0.2
GPU_QUERY = ["nvidia-smi", "--query-gpu=index,utilization.gpu", "--format=csv,noheader,nounits"]
NOT_BUSY = (3, 4)  # of /proc/stat's columns: idle, and waiting for disks


class Usage(NamedTuple):
    """Means over a period. ``cores``: by kind of process. ``host_cores``: of the whole host. ``gpus``: percent, by index."""

    cores: dict[str, float]
    host_cores: float
    gpus: dict[str, float]


class HostWatch:
    """Samples the host while the ``with`` block runs.

    The client is ``perf_analyzer``, which this process starts. The GPUs are those of nvidia-smi, if it is installed.

    Args:
        triton_pid: process id of the tritonserver.
        step_pids: process ids of its steps.
    """

    def __init__(self, triton_pid: int, step_pids: list[int]) -> None:
        self._kinds = {triton_pid: TRITON} | dict.fromkeys(step_pids, STEPS)
        self._looks: list[
            tuple[float, dict[int, float], float]
        ] = []  # time, CPU seconds by process, of the host
        self._gpus: list[tuple[float, dict[str, float]]] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._watch_host, self._watch_gpus)]

    def __enter__(self) -> "HostWatch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def usage(self, began: float, ended: float) -> Usage:
        """The usage between two times of ``time.monotonic``, with at least two samples between them."""
        times = [when for when, *_ in self._looks]
        looks = self._looks[bisect.bisect_left(times, began) : bisect.bisect_right(times, ended)]
        span_s = looks[-1][0] - looks[0][0]
        cores = dict.fromkeys((CLIENT, TRITON, STEPS), 0.0)
        for pid, kind in self._kinds.items():
            seconds = [found[pid] for _, found, _ in looks if pid in found]
            if seconds:
                cores[kind] += (seconds[-1] - seconds[0]) / span_s
        busy: dict[str, list[float]] = {}
        for when, percents in self._gpus:
            if began <= when <= ended:
                for index, percent in percents.items():
                    busy.setdefault(index, []).append(percent)
        gpus = {index: sum(percents) / len(percents) for index, percents in busy.items()}
        return Usage(cores, (looks[-1][2] - looks[0][2]) / span_s, gpus)

    def _watch_host(self) -> None:
        while not self._over.wait(LOOK_S):
            self._kinds |= dict.fromkeys(find_clients(), CLIENT)
            seconds = {pid: cpu_seconds(pid) for pid in self._kinds}
            running = {pid: used for pid, used in seconds.items() if used}
            self._looks.append((time.monotonic(), running, host_seconds()))

    def _watch_gpus(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                done = subprocess.run(GPU_QUERY, capture_output=True, text=True, check=True)
            except (OSError, subprocess.CalledProcessError):
                return
            self._gpus.append((time.monotonic(), dict(read_percents(done.stdout))))


def find_clients() -> list[int]:
    """The process ids of the perf_analyzers that this process has started."""
    pids = []
    for pid in find_children(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == "perf_analyzer\n":
                pids.append(pid)
    return pids


def read_percents(lines: str) -> Iterator[tuple[str, float]]:
    """Reads index and percent from nvidia-smi's ``0, 97``; a GPU that does not report a number is left out."""
    for line in lines.splitlines():
        index, _, percent = line.partition(",")
        if percent.strip().isdecimal():
            yield index.strip(), float(percent)


def host_seconds() -> float:
    """The CPU seconds that all cores of the host have been busy."""
    numbers = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    busy = sum(numbers) - sum(numbers[column] for column in NOT_BUSY)
    return busy / os.sysconf("SC_CLK_TCK")
