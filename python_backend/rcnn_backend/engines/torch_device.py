"""Makes torch compute on an engine's device: on the CPU, or on a GPU on the step's own stream."""

import contextlib
from collections.abc import Iterator

import torch

from rcnn_backend.devices import Device, Gpu


class TorchDevice:
    """torch's view of a device.

    Attributes:
        target: the device.
        index: the number of the GPU, -1 for the CPU.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.target, self.index = torch.device("cpu"), -1
        if isinstance(device, Gpu):
            self.target, self.index = torch.device("cuda", device.device_id), device.device_id
            # torch launches its kernels on the step's own stream
            self._stream = torch.cuda.ExternalStream(device.stream.ptr, self.target)
            with self.current():  # a pool belongs to torch's current GPU
                self._graph_memory = torch.cuda.MemPool()  # torch uses this memory for nothing else

    def current(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the GPU is torch's current device; for the CPU it does nothing."""
        return torch.cuda.device(self.index)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """A context in which torch computes without gradients and on the step's stream.

        If there are CUDA graphs, torch also allocates from the engine's own memory pool.
        """
        with torch.inference_mode(), contextlib.ExitStack() as stack:
            if isinstance(self._device, Gpu):
                stack.enter_context(torch.cuda.stream(self._stream))
                if self._device.has_graphs:
                    stack.enter_context(torch.cuda.use_mem_pool(self._graph_memory))
            yield
