"""Reads the flags that the user gives for tritonserver, and adds others."""

from collections.abc import Sequence
from pathlib import Path

# The amount by which a stub's shared memory grows. With Triton's default of 1 MiB, it grew to four times what tensors
# of mixed shapes need, because each new piece was too small for the next tensor.
SHM_GROWTH_BYTES = 64 << 20
REQUESTS_A_TRACE_FILE = 10


def get_flag(flags: Sequence[str], name: str) -> str:
    """The value of ``--name=value``; the last one counts, as in tritonserver; empty if there is none."""
    values = [flag.partition("=")[2] for flag in flags if flag.partition("=")[0] == f"--{name}"]
    return values[-1] if values else ""


def backend_flags(backends: Path, shared_memory_prefix: str) -> list[str]:
    """The flags for the backends and their shared memory.

    The prefix lets the cleaner find the shared memory of a stub that crashed. Triton does not complete the
    configs: to do so, it would start each model's stub an extra time, and hang forever if that stub crashes.
    """
    names = ["python", *sorted(path.parent.name for path in backends.glob("*/model.py"))]
    prefix = f"shm-region-prefix-name={shared_memory_prefix}-"
    growth = f"shm-growth-byte-size={SHM_GROWTH_BYTES}"
    settings = [f"--backend-config={name},{setting}" for name in names for setting in (prefix, growth)]
    return [f"--backend-directory={backends}", "--disable-auto-complete-config", *settings]


def model_flags(served: Sequence[str]) -> list[str]:
    """The flags to load these models and no others."""
    return ["--model-control-mode=explicit", *(f"--load-model={name}" for name in served)]


def trace_flags(folder: Path) -> list[str]:
    """The flags to trace every request, step by step, into files ``trace.json.<n>`` in the folder."""
    settings = ("mode=triton", "level=TIMESTAMPS", "rate=1")
    file = (f"triton,file={folder.resolve() / 'trace.json'}", f"triton,log-frequency={REQUESTS_A_TRACE_FILE}")
    return [f"--trace-config={setting}" for setting in (*settings, *file)]
