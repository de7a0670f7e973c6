"""Passes pixels to a server on this host through system shared memory.

A region has a name in /dev/shm only until the server has opened it: from then on it lives as long as the
client's and the server's mappings do, so nothing is left behind however this process ends. If the process is
killed before the server has opened the region, the next client on this host removes the name.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from ._connection import Connection
from ._errors import ServerError

FOLDER = Path("/dev/shm")
PREFIX = "rcnn_client_"
CLOSING_TIMEOUT_S = 1.0
# Triton's message for a region that it does not know, because it was restarted.
LOST = "Unable to find shared memory region"


class Region:
    """Shared memory of at least `byte_size` bytes; the server knows it by its `name`.

    Raises:
        ServerError: this host has no shared memory, or too little of it.
    """

    def __init__(self, byte_size: int) -> None:
        self.name = f"{PREFIX}{os.getpid()}_{secrets.token_hex(8)}"
        self.byte_size = (
            1 << (byte_size - 1).bit_length()
        )  # a power of 2: few sizes, so that a region fits many pictures
        try:
            remove_abandoned()
            self._descriptor = create_locked(FOLDER / self.name)
            try:
                # Reserve it now: without this, writing when memory is short would kill the process (SIGBUS).
                os.posix_fallocate(self._descriptor, 0, self.byte_size)
                self._memory = mmap.mmap(self._descriptor, self.byte_size)
            except BaseException:
                self.unlink()
                raise
        except OSError as error:
            raise ServerError(
                f"no {self.byte_size} bytes of shared memory in {FOLDER}: {error.strerror}; enlarge it, have "
                'fewer pictures in flight, or use transport="grpc"'
            ) from error

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Copy uint8 [height, width, 3] to the start of the region."""
        np.copyto(np.frombuffer(self._memory, np.uint8, pixels.size).reshape(pixels.shape), pixels)

    def unlink(self) -> None:
        """Remove the name; the memory stays."""
        (FOLDER / self.name).unlink(missing_ok=True)
        os.close(self._descriptor)


def create_locked(path: Path) -> int:
    """Create a file and lock it; the lock lasts as long as this process has it open."""
    import fcntl  # not on Windows, which has no /dev/shm either

    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # it was removed as abandoned before it was locked


def remove_abandoned() -> None:
    """Remove the names that nobody holds a lock on: their processes were killed."""
    import fcntl

    for path in FOLDER.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # locked, another user's, or gone by now
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


class Regions:
    """The regions that each server has opened, and which of them are free. Safe to share between threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._free: dict[int, list[Region]] = defaultdict(list)
        self._opened: dict[int, set[str]] = defaultdict(set)
        self._lock = threading.Lock()

    def take(self, endpoint: int, byte_size: int) -> Region | None:
        """Take the smallest free region of at least `byte_size` bytes; None if there is none."""
        with self._lock:
            fitting = [region for region in self._free[endpoint] if region.byte_size >= byte_size]
            if not fitting:
                return None
            region = min(fitting, key=lambda region: region.byte_size)
            self._free[endpoint].remove(region)
            return region

    def opening(self, endpoint: int, region: Region) -> None:
        """Note that the server is about to open the region."""
        with self._lock:
            self._opened[endpoint].add(region.name)

    def give_back(self, endpoint: int, region: Region) -> None:
        """Mark the region as free: nobody waits for an answer about its picture any more."""
        with self._lock:
            self._free[endpoint].append(region)

    def forget(self, endpoint: int) -> None:
        """Forget the free regions of a server that was restarted."""
        with self._lock:
            self._free.pop(endpoint, None)

    def release(self) -> None:
        """Ask every server to close its regions; each server gets a second to answer."""
        with self._lock:
            opened = {endpoint: names for endpoint, names in self._opened.items() if names}
            self._opened.clear()
            self._free.clear()
        for endpoint, names in opened.items():
            client = self._connection.open(triton.InferenceServerClient, endpoint)
            deadline = time.monotonic() + CLOSING_TIMEOUT_S
            for name in names:
                self._close(client, name, deadline)
            client.close()

    def _close(self, client: triton.InferenceServerClient, name: str, deadline: float) -> None:
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                client.unregister_system_shared_memory(
                    name, headers=self._connection.headers, client_timeout=left_s
                )
            except InferenceServerException as error:
                if "in use" in (error.message() or ""):  # by a request whose client no longer waits
                    time.sleep(0.02)
                    continue
            return
