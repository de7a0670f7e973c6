"""NVIDIA's Multi-Process Service: the steps' processes run their kernels side by side on a GPU.

Without it a GPU serves one process at a time, in slices of time.
https://docs.nvidia.com/deploy/mps/
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from rcnn_backend.errors import ServerError

CONTROL = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
TIMEOUT_S = 30.0


@contextlib.contextmanager
def running_mps(folder: Path) -> Iterator[Mapping[str, str]]:
    """Runs a daemon for this server alone while the block is open. Gives the environment variables of its clients.

    Args:
        folder: for the daemon's pipes and logs.

    Raises:
        ServerError: there is no such daemon here, or it does not start.
    """
    environment = {PIPES: str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps" / "log")}
    (folder / "mps" / "log").mkdir(parents=True)
    try:
        _control(environment, "-d")
        yield environment
    finally:
        with contextlib.suppress(ServerError):
            _control(environment, commands="quit\n")


def _control(environment: Mapping[str, str], *arguments: str, commands: str = "") -> None:
    try:
        done = subprocess.run(
            [CONTROL, *arguments],
            env={**os.environ, **environment},
            input=commands,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise ServerError(
            f"--mps needs {CONTROL}, which comes with NVIDIA's driver and is not on PATH: serve without --mps, "
            "or in a container that has the driver's utilities (NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"{CONTROL} did not answer within {TIMEOUT_S:g} s") from error
    if done.returncode:
        raise ServerError(f"{CONTROL} ended with exit code {done.returncode}: {done.stdout.strip()}")
