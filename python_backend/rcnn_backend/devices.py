"""Where a step computes: on the CPU, or on one GPU with its own stream."""

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = Any  # NumPy on the CPU, CuPy on a GPU


class Device(Protocol):
    """The place where a step computes."""

    is_gpu: bool

    def active(self) -> contextlib.AbstractContextManager[None]:
        """A context in which arrays are made and kernels run on the device."""

    def synchronize(self) -> None:
        """Waits until all work that was started on the device is done."""

    def is_usable(self) -> bool:
        """Whether the device still works after a failure; a GPU may refuse all further calls."""

    def upload(self, array: npt.NDArray[Any]) -> Array:
        """Copies the array to the device."""

    def download(self, arrays: Sequence[Array]) -> list[npt.NDArray[Any]]:
        """Copies the arrays to the CPU after they have been computed."""

    def import_array(self, tensor: Any) -> Array:
        """An array from any object with DLPack. It shares the object's memory if that is on the device."""

    def concatenate(self, arrays: list[Array]) -> Array:
        """Joins arrays along their first axis."""


class Cpu:
    """NumPy arrays; all work is synchronous."""

    is_gpu = False

    def active(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        pass

    def is_usable(self) -> bool:
        return True

    def upload(self, array: npt.NDArray[Any]) -> Array:
        return array

    def download(self, arrays: Sequence[Array]) -> list[npt.NDArray[Any]]:
        return [np.asarray(array) for array in arrays]

    def import_array(self, tensor: Any) -> Array:
        return np.from_dlpack(tensor)

    def concatenate(self, arrays: list[Array]) -> Array:
        return np.concatenate(arrays)


class Gpu:
    """CuPy arrays on the GPU ``device_id``.

    Raises:
        ImportError: CuPy is not installed.
        RuntimeError: CUDA's runtime compiler is neither installed by pip nor on the system.
    """

    is_gpu = True

    def __init__(self, device_id: int) -> None:
        os.environ.setdefault("CUPY_CACHE_IN_MEMORY", "1")  # a server writes no compiled kernels to disk
        importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib(
            "nvrtc"
        )  # CuPy does not find it in NVIDIA's wheel
        self._cupy = importlib.import_module("cupy")
        self._empty_pinned = importlib.import_module("cupyx").empty_pinned
        self.device_id = device_id
        self._device = self._cupy.cuda.Device(device_id)
        with self._device:
            self.stream = self._cupy.cuda.Stream(non_blocking=True)
        self.has_graphs = False  # whether there are CUDA graphs, which hold pointers into the engines' memory

    @property
    def compute_capability(self) -> str:
        """The compute capability of this GPU, such as ``8.9``."""
        digits: str = self._device.compute_capability
        return f"{digits[:-1]}.{digits[-1]}"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with self._device, self.stream:
            yield

    def synchronize(self) -> None:
        self.stream.synchronize()

    def is_usable(self) -> bool:
        """Asks the GPU itself.

        Some errors, such as an illegal access or an uncorrectable memory error, destroy the process's
        CUDA context: every later call returns the same error. Others, such as lack of memory, are returned once.
        """
        try:
            with self._device:
                self._device.synchronize()
        except self._cupy.cuda.runtime.CUDARuntimeError:
            return False
        return True

    def upload(self, array: npt.NDArray[Any]) -> Array:
        return self._cupy.asarray(array)

    def download(self, arrays: Sequence[Array]) -> list[npt.NDArray[Any]]:
        hosts = [self._empty_pinned(array.shape, array.dtype) for array in arrays]
        for array, host in zip(arrays, hosts, strict=True):
            array.get(out=host, blocking=False)
        self.stream.synchronize()
        return hosts

    def import_array(self, tensor: Any) -> Array:
        array = self._cupy.from_dlpack(tensor)
        return self._cupy.asarray(array)  # copies it if it is on another GPU

    def concatenate(self, arrays: list[Array]) -> Array:
        return self._cupy.concatenate(arrays)
