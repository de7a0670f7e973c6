"""Faults of a GPU: another process takes its memory, a batch is larger than its memory, MPS is killed."""

import contextlib
import functools
import io
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from rcnn_backend.server.gpus import steps_use_gpu
from world import MODEL, CannotHappenHereError, Fault, World

TAKE_MEMORY = Path(__file__).with_name("take_gpu_memory.py")
LARGE_HW, BATCH = (7000, 7000), 8
LARGE_TIMEOUT_S = 10.0


def check_gpu() -> None:
    """Raises CannotHappenHereError if the steps do not use a GPU."""
    if not steps_use_gpu():
        raise CannotHappenHereError("the steps do not use a GPU here")


@contextlib.contextmanager
def take_memory(world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Another process takes all free GPU memory, and also memory that becomes free later."""
    check_gpu()
    with subprocess.Popen(
        [sys.executable, TAKE_MEMORY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def send_large_batch(world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Sends eight very large pictures in one request while another process has the GPU memory. Both an error and an
    answer are allowed.
    """
    with take_memory(world, index, rng), triton.InferenceServerClient(world.servers[index].url) as client:
        batch = triton.InferInput("image", [BATCH, 1], "BYTES")
        batch.set_data_from_numpy(np.full((BATCH, 1), large_picture(), object))
        with contextlib.suppress(triton.InferenceServerException):
            client.infer(MODEL, [batch], client_timeout=LARGE_TIMEOUT_S)
        yield


@functools.cache
def large_picture() -> bytes:
    """A JPEG of 49 million pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", LARGE_HW).save(buffer, "JPEG")
    return buffer.getvalue()


@contextlib.contextmanager
def kill_mps(world: World, index: int, rng: random.Random) -> Iterator[None]:
    """Kills the daemon that lets the server's steps share the GPU, and the processes that it has started."""
    check_gpu()
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if is_mps(folder, world, index)]
    if not pids:
        raise CannotHappenHereError("MPS is not on")
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    yield


def is_mps(process: Path, world: World, index: int) -> bool:
    """Whether a process (its folder in /proc) belongs to the server's MPS, whose pipes are in the server's folder."""
    try:
        command, environment = (process / name for name in ("cmdline", "environ"))
        return (
            b"nvidia-cuda-mps" in command.read_bytes()
            and os.fsencode(world.servers[index].folder) in environment.read_bytes()
        )
    except OSError:
        return False


FAULTS: dict[str, Fault] = {
    "GPU memory taken": take_memory,
    "batch larger than GPU memory": send_large_batch,
    "MPS killed": kill_mps,
}
