"""The GPUs that a CUDA program started here sees, as reported by nvidia-smi.

A GPU in MIG mode is divided into slices, each with its own memory. A CUDA program sees one slice, while
nvidia-smi's ``memory.total`` is that of the whole GPU or, in a container, not reported.
https://docs.nvidia.com/datacenter/tesla/mig-user-guide/
"""

import contextlib
import importlib.util
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from xml.etree import ElementTree

from rcnn_backend.errors import ServerError

VISIBLE = "CUDA_VISIBLE_DEVICES"
UUIDS = ("GPU-", "MIG-")


@dataclass(frozen=True)
class Slice:
    """A MIG device. ``gpu``: the position of the GPU that it is part of. ``size``: its memory in bytes."""

    gpu: int
    uuid: str
    size: int


def find_gpus() -> tuple[int, int]:
    """How many GPUs a CUDA program sees, and the memory of the machine's smallest one in bytes; (0, 0) without a GPU.

    It is the smallest because CUDA and nvidia-smi number the GPUs differently if they are of different kinds. Memory
    that nvidia-smi does not report counts as 0. If any GPU is divided into MIG slices, one GPU counts, because a
    CUDA program sees only one slice; its memory is that of the slice that CUDA_VISIBLE_DEVICES names.
    """
    answer = _ask("--query-gpu=index,memory.total", "--format=csv,noheader,nounits")
    totals = [_bytes(line.split(",")[1]) for line in answer.splitlines() if "," in line]
    if slices := _mig_slices():
        return _find_slice(totals, slices)
    num_visible = _num_visible(len(totals)) if totals else 0
    return (num_visible, min(totals)) if num_visible else (0, 0)


def choose_gpus(numbers: Sequence[int]) -> str:
    """The value of CUDA_VISIBLE_DEVICES with which a CUDA program sees only these of the GPUs that it sees here.

    Args:
        numbers: CUDA's numbers of these GPUs, from 0. If CUDA_VISIBLE_DEVICES is set, they are positions in it.

    Raises:
        ServerError: there is no GPU with one of these numbers.
    """
    num_gpus, _ = find_gpus()
    listed = _listed() or [str(number) for number in range(num_gpus)]
    for number in numbers:
        if number >= num_gpus:
            seen = ", ".join(map(str, range(num_gpus)))
            here = (
                f"those that a CUDA program sees here are {seen}" if seen else "a CUDA program sees none here"
            )
            raise ServerError(f"--gpus names GPU {number}, and {here}")
    return ",".join(listed[number] for number in numbers)


def steps_use_gpu() -> bool:
    """Whether the Python steps compute on a GPU: there is one, and CuPy is installed."""
    return importlib.util.find_spec("cupy") is not None and find_gpus()[0] > 0


def _find_slice(totals: list[int], slices: list[Slice]) -> tuple[int, int]:
    first, *_ = _listed() or ["0"]
    if not first.isdecimal() and not first.startswith(UUIDS):
        return 0, 0
    cut = {part.gpu for part in slices}
    whole = [total for gpu, total in enumerate(totals) if gpu not in cut]
    named = [part.size for part in slices if first.startswith("MIG-") and part.uuid.startswith(first)]
    return 1, min(named or [*whole, *(part.size for part in slices)])


def _num_visible(num_gpus: int) -> int:
    """CUDA_VISIBLE_DEVICES lists indices or UUIDs, and CUDA stops at the first invalid index."""
    listed = _listed()
    if listed is None:
        return num_gpus
    valid = {str(index) for index in range(num_gpus)}
    return len(list(takewhile(lambda entry: entry in valid or entry.startswith(UUIDS), listed)))


def _listed() -> list[str] | None:
    listed = os.environ.get(VISIBLE)
    return None if listed is None else [entry.strip() for entry in listed.split(",")]


def _mig_slices() -> list[Slice]:
    """The slices of all GPUs. ``nvidia-smi -L`` lists them under their GPU, by number and UUID.

    Only the XML has their memory, but not every driver writes the UUIDs there.
    """
    uuids: dict[tuple[int, str], str] = {}
    gpu = -1
    for line in _ask("-L").splitlines():
        if line.startswith("GPU "):
            gpu += 1
        elif found := re.match(r"\s+MIG .*Device\s+(\d+): \(UUID: (\S+)\)", line):
            uuids[gpu, found[1]] = found[2]
    sizes: dict[tuple[int, str], int] = {}
    if uuids:
        with contextlib.suppress(ElementTree.ParseError):
            for gpu, element in enumerate(ElementTree.fromstring(_ask("-q", "-x")).iterfind("gpu")):
                for part in element.iterfind("mig_devices/mig_device"):
                    place = gpu, part.findtext("index", "").strip()
                    sizes[place] = _bytes(part.findtext("fb_memory_usage/total", ""))
    return [Slice(place[0], uuid, sizes.get(place, 0)) for place, uuid in uuids.items()]


def _bytes(mebibytes: str) -> int:
    """The bytes in ``4864`` or ``4864 MiB``; 0 if there is no number, as in ``[N/A]``."""
    number, *_ = [*mebibytes.split(), ""]
    return int(number) << 20 if number.isdecimal() else 0


def _ask(*arguments: str) -> str:
    """What nvidia-smi prints; empty if it is missing or fails."""
    command = ["nvidia-smi", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
