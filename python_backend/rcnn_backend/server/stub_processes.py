"""The processes that run a server's Python models, one for each model instance.

Triton 24.10 does not restart a process that died, and still reports that it is ready.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rcnn_backend.contract.executions import read_gpu
from rcnn_backend.server.repository_api import FAILURES, model_states

ENDED = "ZX"  # zombie, dead
STOPPED = "T"
EXIT_CODE = 49  # its index in the fields after the command's name; in the form that waitpid gives
MODEL_ARGUMENT, INSTANCE_ARGUMENT = 1, 8  # of the stub's command line
RESCAN_S = 1.0
# Numbers of looks, 0.1 s apart, at a server that is starting. Triton collects a process that it kills immediately, and
# many crashed processes within 2 s.
KILLED_LOOKS, CRASHED_LOOKS = 5, 30


@dataclass(frozen=True)
class Stub:
    """The process of a model instance.

    ``instance``: the model instance's name, or the model's name if this version of Triton does not give the former.
    ``model`` and ``version``: the folders that contain the model's file. ``gpu``: distinguishes the instances on
    several GPUs, to which Triton gives the same name; None on the CPU, or if the process does not report its GPU.
    """

    instance: str
    model: str
    version: str
    gpu: int | None = None

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.instance if self.gpu is None else f"{self.instance} on GPU {self.gpu}"


UNKNOWN = Stub("a Python model", "", "")


@dataclass
class StubWatch:
    """Distinguishes stubs that died from those that Triton ended when it unloaded their model.

    ``url``: ``host:port`` of the HTTP endpoint; empty if there is none. ``headers``: the headers that open the
    model-repository API there. ``models_stay``: models are neither loaded nor unloaded, so a stub that ended has died,
    even if the server cannot be asked. ``executions``: the path prefix of the files in which processes report their
    GPU (see ``contract/executions.py``). ``dead``: the model instances whose process died. ``uncollected``: for a
    server that is starting, how many looks in a row found a process ended but not collected by Triton, by process id.
    """

    server_pid: int
    url: str
    headers: Mapping[str, str]
    models_stay: bool
    executions: str = ""
    stubs: dict[int, Stub] = field(default_factory=dict)
    dead: list[str] = field(default_factory=list)
    uncollected: dict[int, int] = field(default_factory=dict)
    next_scan: float = 0.0  # by time.monotonic

    def look_at_start(self) -> list[str]:
        """Looks at the processes of a server that is loading its models; returns ``dead``.

        Triton collects a process that it ended itself, and one whose death it noticed; the latter fails the model's
        load. Any other process stays a zombie, even if it died before it ran the model: Triton waits for it forever,
        or considers it ready.
        """
        children = find_children(self.server_pid)
        ended = [pid for pid, state in children.items() if state in ENDED]
        self.uncollected = {pid: self.uncollected.get(pid, 0) + 1 for pid in ended}
        known = {pid: stub for pid, stub in self.stubs.items() if pid in ended}
        self.stubs = known | _read_stubs(children, self.executions)
        for pid, looks in self.uncollected.items():
            if looks == (KILLED_LOOKS if was_killed(pid) else CRASHED_LOOKS):
                self.dead.append(self.stubs.get(pid, UNKNOWN).name)
        return self.dead

    def look(self) -> list[str]:
        """Looks at the processes; returns ``dead``. A stub that ended is added to it if its model is still loaded."""
        if time.monotonic() >= self.next_scan:
            self._scan()
        if not (ended := [pid for pid in self.stubs if has_ended(pid)]):
            return self.dead
        states: Mapping[tuple[str, str], str] = {}
        if self.url:
            with contextlib.suppress(*FAILURES):
                states = model_states(self.url, self.headers)
        if not (states or self.models_stay):
            return self.dead  # the server is asked again at the next look
        self._scan()  # only now: a model that was reloaded before the server answered has its new process
        stubs = [self.stubs.pop(pid) for pid in ended]
        running, untold = set(self.stubs.values()), "READY" if self.models_stay else ""
        for stub in stubs:
            if stub not in running and states.get((stub.model, stub.version), untold) == "READY":
                self.dead.append(stub.name)
        return self.dead

    def _scan(self) -> None:
        self.stubs |= find_stubs(self.server_pid, self.executions)
        self.next_scan = time.monotonic() + RESCAN_S


def find_stubs(server_pid: int, executions: str = "") -> dict[int, Stub]:
    """The stubs of the server, by process id; none while this process can open no more files.

    Args:
        executions: as in ``StubWatch``; if it is empty, no stub has a GPU.
    """
    return _read_stubs(find_children(server_pid), executions)


def find_children(parent: int) -> dict[int, str]:
    """The state of each child process of ``parent``, by process id; none if ``/proc`` cannot be read."""
    children = {}
    pids: list[int] = []
    with contextlib.suppress(OSError):
        pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):  # the process ended meanwhile
            state, its_parent = _stat(pid)[:2]
            if int(its_parent) == parent:
                children[pid] = state
    return children


def _read_stubs(pids: Iterable[int], executions: str) -> dict[int, Stub]:
    """The processes that are stubs. A process that ended has no command line and is left out."""
    stubs = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            if arguments[0].endswith("/triton_python_backend_stub"):
                gpu = read_gpu(executions, pid) if executions else None
                stubs[pid] = replace(read_stub(arguments), gpu=gpu)
    return stubs


def read_stub(arguments: list[str]) -> Stub:
    """Parses the command line of a stub: ``stub <repository>/<model>/<version>/<file> ...``, with the instance at 8.

    Other versions of Triton may have a shorter command line: the missing parts are then empty.
    """
    file = arguments[MODEL_ARGUMENT] if len(arguments) > MODEL_ARGUMENT else ""
    *_, model, version, _ = ["", "", "", *Path(file).parts]
    instance = arguments[INSTANCE_ARGUMENT] if len(arguments) > INSTANCE_ARGUMENT else ""
    return Stub(instance or model or UNKNOWN.instance, model, version)


def tell_dead(instances: Sequence[str]) -> str:
    """The start of a sentence about model instances whose process died."""
    return f"the process of {', '.join(instances)} ended, and tritonserver does not restart it"


def has_ended(pid: int) -> bool:
    """Whether the process has ended, also if its parent has not collected it yet (a zombie)."""
    try:
        return _stat(pid)[0] in ENDED
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return True
    except OSError:  # this process may have too many open files, and cannot know
        return False


def was_killed(pid: int) -> bool:
    """Whether an ended, uncollected process got SIGKILL, which the kernel sends when memory runs out."""
    try:
        return int(_stat(pid)[EXIT_CODE]) == signal.SIGKILL
    except (OSError, IndexError):
        return False


def is_stopped(pid: int) -> bool:
    """Whether the process was stopped by a signal."""
    try:
        return _stat(pid)[0] == STOPPED
    except (OSError, IndexError):
        return False


def cpu_seconds(pid: int) -> float:
    """The CPU time of the process, over all cores; 0 if it is not known."""
    try:
        user, system = _stat(pid)[11:13]
    except (OSError, ValueError):
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the command's name: state, parent and so on."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
