"""Where torch computes for an engine: on the CPU, or on the stream of a step's GPU."""

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
            # the step's own, for what torch launches
            self._stream = torch.cuda.ExternalStream(device.stream.ptr, self.target)
            with self.current():  # a pool belongs to torch's current GPU
                self._graph_memory = torch.cuda.MemPool()  # which torch gives to nobody else

    def current(self) -> contextlib.AbstractContextManager[None]:
        """While this is entered, the GPU is torch's current one; for the CPU it does nothing."""
        return torch.cuda.device(self.index)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While this is entered, torch computes without gradients, on the step's stream and in its own memory."""
        with torch.inference_mode(), contextlib.ExitStack() as stack:
            if isinstance(self._device, Gpu):
                stack.enter_context(torch.cuda.stream(self._stream))
                if self._device.has_graphs:
                    stack.enter_context(torch.cuda.use_mem_pool(self._graph_memory))
            yield
