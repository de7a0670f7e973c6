"""Training in several processes started by ``torchrun``: the rank of this process, and the data that they exchange."""

import os
from typing import Any

import torch
from torch import distributed, nn

from rcnn_export.errors import ExportError


class Processes:
    """This process among the processes of the run; the only one unless ``torchrun`` started it.

    Attributes:
        rank: this process's number; rank 0 prints and writes.
        count: the number of processes.
        device: the device on which this process trains. GPUs are assigned in turn. Several processes per GPU are useful
            for a light detector, which waits for Python more than for the GPU.
    """

    def __init__(self, device: str) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        local_count = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise ExportError(f"unknown device {device!r}: give cpu, cuda or cuda:1") from error
        num_gpus = torch.cuda.device_count()
        if self.device.type == "cuda":
            if (self.device.index or 0) >= num_gpus:
                raise ExportError(f"no device {device!r}: torch sees {num_gpus} GPUs. Try --device cpu")
            if self.count > 1:
                self.device = torch.device("cuda", local_rank % num_gpus)
                torch.cuda.set_device(self.device)
        if self.count > 1:
            gpu_each = self.device.type == "cuda" and local_count <= num_gpus
            distributed.init_process_group("nccl" if gpu_each else "gloo")

    def mean(self, *values: float) -> list[float]:
        """The mean of each value over the processes."""
        if self.count == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared)
        return (shared / self.count).tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, by rank."""
        gathered = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(gathered, value)
        return gathered

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every process rank 0's buffers, the running statistics of batch normalisation."""
        if self.count > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)

    def close(self) -> None:
        """Leaves the group."""
        if self.count > 1:
            distributed.destroy_process_group()
