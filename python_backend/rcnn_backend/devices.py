"""Where a step computes: on the CPU, or on one GPU on a stream of its own."""

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = Any  # NumPy on the CPU, CuPy on a GPU


class Device(Protocol):
    """What a step needs to know of the place it runs at."""

    is_gpu: bool

    def active(self) -> contextlib.AbstractContextManager[None]:
        """While this is entered, arrays are made and kernels run there."""

    def synchronize(self) -> None:
        """Waits until everything that was started there is done."""

    def upload(self, array: npt.NDArray[Any]) -> Array:
        """The array there."""

    def download(self, array: Array) -> npt.NDArray[Any]:
        """The array on the CPU, once it is computed."""

    def import_array(self, tensor: Any) -> Array:
        """An array that shares the memory of anything that speaks DLPack."""

    def concatenate(self, arrays: list[Array]) -> Array:
        """Joins arrays along their first axis."""


class Cpu:
    """NumPy arrays; nothing to wait for."""

    is_gpu = False

    def active(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        pass

    def upload(self, array: npt.NDArray[Any]) -> Array:
        return array

    def download(self, array: Array) -> npt.NDArray[Any]:
        return np.asarray(array)

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
        )  # CuPy knows no wheel of it
        self._cupy = importlib.import_module("cupy")
        self.device_id = device_id
        self._device = self._cupy.cuda.Device(device_id)
        with self._device:
            self.stream = self._cupy.cuda.Stream(non_blocking=True)

    @property
    def compute_capability(self) -> str:
        """Of this GPU, such as ``8.9``."""
        digits: str = self._device.compute_capability
        return f"{digits[:-1]}.{digits[-1]}"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with self._device, self.stream:
            yield

    def synchronize(self) -> None:
        self.stream.synchronize()

    def upload(self, array: npt.NDArray[Any]) -> Array:
        return self._cupy.asarray(array)

    def download(self, array: Array) -> npt.NDArray[Any]:
        host: npt.NDArray[Any] = self._cupy.asnumpy(array)
        return host

    def import_array(self, tensor: Any) -> Array:
        return self._cupy.from_dlpack(tensor)

    def concatenate(self, arrays: list[Array]) -> Array:
        return self._cupy.concatenate(arrays)
