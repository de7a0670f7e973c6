"""Checks the space in /dev/shm, through which Triton and the processes of Python models pass tensors."""

import os

from rcnn_backend.errors import ServerError
from rcnn_backend.server.flags import SHM_GROWTH_BYTES

SHARED_MEMORY = "/dev/shm"
SHM_START_BYTES = 1 << 20  # Triton's default
ADVICE_BYTES = 1 << 30


def check_shared_memory(num_processes: int) -> None:
    """Refuses to serve if there is not enough space for the first picture.

    Each process starts with SHM_START_BYTES and takes SHM_GROWTH_BYTES more for the first tensor that does not fit.
    Several pictures at once, or larger ones, take more.

    Args:
        num_processes: how many processes will pass a picture's tensors through shared memory and have not done so yet.

    Raises:
        ServerError: there is too little space; the message says how much there is and how to get more.
    """
    needed = num_processes * (SHM_START_BYTES + SHM_GROWTH_BYTES)
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError as error:
        raise ServerError(f"Triton's Python models need {SHARED_MEMORY}: {error.strerror}") from error
    free = found.f_bavail * found.f_frsize
    if free < needed:
        gigabytes = -(-max(ADVICE_BYTES, 2 * needed) // (1 << 30))
        who = (
            "the process of a model needs"
            if num_processes == 1
            else f"the {num_processes} processes of the models need"
        )
        raise ServerError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free, and {who} at least {needed >> 20}: give it {gigabytes} GiB, with "
            f"`docker run --shm-size={gigabytes}g`, in Kubernetes with an emptyDir volume of medium Memory at "
            f"{SHARED_MEMORY}, elsewhere with `mount -o remount,size={gigabytes}g {SHARED_MEMORY}`"
        )
