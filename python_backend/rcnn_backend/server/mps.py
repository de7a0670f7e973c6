"""NVIDIA's Multi-Process Service: the steps' processes run their kernels concurrently on a GPU.

Without it a GPU serves one process at a time, in time slices.
https://docs.nvidia.com/deploy/mps/
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from rcnn_backend.errors import ServerError
from rcnn_backend.server.gpus import VISIBLE

CONTROL = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
TIMEOUT_S = 30.0

# A client of the daemon. Only a client's first context shows whether the service works: the daemon also starts if
# another process has exclusive use of the GPU, if the service does not support the GPU's mode, or if this container
# has no access to the GPU.
PROBE = """
import ctypes
cuda, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
code = cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
raise SystemExit(f"CUDA error {code}" if code else 0)
"""


@contextlib.contextmanager
def running_mps(folder: Path) -> Iterator[Mapping[str, str]]:
    """Runs a daemon for this server alone while the block is open. Yields the environment variables for its clients.

    If the environment already names a daemon, the clients use that one.

    Args:
        folder: for the daemon's pipes and logs.

    Raises:
        ServerError: the daemon is not installed, it does not start, or no program can compute through it.
    """
    if os.environ.get(PIPES):
        _probe({})
        yield {}
        return
    environment = {PIPES: str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps" / "log")}
    (folder / "mps" / "log").mkdir(parents=True)
    _control(environment, "-d")
    try:
        _probe(environment)
        yield environment
    finally:
        with contextlib.suppress(ServerError):
            _control(environment, commands="quit\n")


def _probe(environment: Mapping[str, str]) -> None:
    """Lets a program compute through the daemon."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerError(
            f"a program that asked for the GPU did not get it within {TIMEOUT_S:g} s"
        ) from error
    if done.returncode:
        *_, reason = done.stderr.strip().splitlines() or ["it was killed"]
        raise ServerError(f"no program can use the GPU through MPS ({reason})")
    # Without a daemon, CUDA uses the GPU directly.
    if not _control(environment, commands="get_server_list\n").strip():
        raise ServerError("programs do not use the GPU through MPS")


def _control(environment: Mapping[str, str], *arguments: str, commands: str = "") -> str:
    """Runs the daemon's control program and returns its output."""
    # The daemon renumbers the GPUs that it sees, and its clients would apply their list to the new numbers.
    numbered = os.environ.get(VISIBLE, "").replace(",", "").replace(" ", "").isdecimal()
    inherited = {name: value for name, value in os.environ.items() if name != VISIBLE or not numbered}
    try:
        done = subprocess.run(
            [CONTROL, *arguments],
            env={**inherited, **environment},
            input=commands,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise ServerError(
            f"{CONTROL}, which comes with NVIDIA's driver, is not on PATH; a container has it with "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        ) from error
    except OSError as error:
        raise ServerError(f"{CONTROL} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"{CONTROL} did not answer within {TIMEOUT_S:g} s") from error
    if done.returncode:
        raise ServerError(f"{CONTROL} ended with exit code {done.returncode}: {done.stdout.strip()}")
    return done.stdout
