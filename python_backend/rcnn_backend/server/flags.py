"""Reads the flags that the user gives for tritonserver, and makes others."""

from collections.abc import Sequence
from pathlib import Path

# By how much a stub's shared memory grows. By Triton's 1 MiB it grew to four times what tensors of mixed
# shapes need, for each new piece is too small for the next tensor.
SHM_GROWTH_BYTES = 64 << 20
REQUESTS_A_TRACE_FILE = 10


def get_flag(flags: Sequence[str], name: str) -> str:
    """The value of ``--name=value``; of several the last counts, as in tritonserver; empty if there is none."""
    values = [flag.partition("=")[2] for flag in flags if flag.partition("=")[0] == f"--{name}"]
    return values[-1] if values else ""


def backend_flags(backends: Path, shared_memory_prefix: str) -> list[str]:
    """The prefix lets the cleaner find the shared memory of a stub that crashed.

    Configs are taken as they are, because Triton completes one by starting the model's stub
    once more, and hangs for good when that one crashes.
    """
    names = ["python", *sorted(path.parent.name for path in backends.glob("*/model.py"))]
    prefix = f"shm-region-prefix-name={shared_memory_prefix}-"
    growth = f"shm-growth-byte-size={SHM_GROWTH_BYTES}"
    settings = [f"--backend-config={name},{setting}" for name in names for setting in (prefix, growth)]
    return [f"--backend-directory={backends}", "--disable-auto-complete-config", *settings]


def model_flags(served: Sequence[str]) -> list[str]:
    """Loads these models and no other."""
    return ["--model-control-mode=explicit", *(f"--load-model={name}" for name in served)]


def trace_flags(folder: Path) -> list[str]:
    """Traces every request, step by step, into files ``trace.json.<n>`` of the folder."""
    settings = ("mode=triton", "level=TIMESTAMPS", "rate=1")
    file = (f"triton,file={folder.resolve() / 'trace.json'}", f"triton,log-frequency={REQUESTS_A_TRACE_FILE}")
    return [f"--trace-config={setting}" for setting in (*settings, *file)]
