"""How long a GPU takes to decode a batch of JPEGs, and how long for the whole batch."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from rcnn_backend.contract.configs import read_config
from rcnn_backend.devices import Cpu, Device, Gpu
from rcnn_backend.pipeline import Pipeline

RUNS = 21


class BatchTime(NamedTuple):
    """Median milliseconds for a batch of ``batch`` JPEGs; ``whole_ms`` includes ``decode_ms``."""

    batch: int
    decode_ms: float
    whole_ms: float


def time_batch(repository: Path, name: str, jpegs: list[bytes]) -> BatchTime:
    """Times the largest batch of a detector in process, on the first GPU.

    Afterwards, the plans that the engines chose for this kind of GPU are on disk, so several servers do not have to
    choose them at the same time.
    """
    device: Device = Gpu(0) if torch.cuda.is_available() else Cpu()
    pipeline = Pipeline.load(repository, name, device)
    size = int(read_config(repository / f"{name}_fused")["max_batch_size"])
    batch = [jpegs[number % len(jpegs)] for number in range(size)]
    wanted = {tensor.name for tensor in pipeline.chain.answers} - {"rles"}
    with device.active():
        pipeline.warm_up(size)

    def decode() -> None:
        with device.active():
            pipeline.decoder.decode_requests([batch])
            device.synchronize()

    return BatchTime(
        size, median_ms(decode, RUNS), median_ms(lambda: pipeline.detect(batch, wanted=wanted), RUNS)
    )


def median_ms(call: Callable[[], object], runs: int) -> float:
    """The median over all calls except the first two."""
    times = []
    for _ in range(runs + 2):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[2:])
