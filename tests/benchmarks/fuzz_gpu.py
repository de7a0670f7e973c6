"""Decodes valid and hostile JPEGs on the GPU: each must give pixels or InvalidInputError, and memory must stay flat.

    python tests/benchmarks/fuzz_gpu.py --inputs 20000

Every pixel of a valid JPEG must be within BOUND (of 255 levels) of Pillow's. A damaged JPEG must have the size that
Pillow gives it; differences of more than BOUND are only counted, because decoders continue in different ways after an
error. The n-th input is the same in every run; ``--first`` is the number of the first one.
"""

import argparse
import os
import random
import statistics
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cupy
import numpy as np
from hostile_pictures import EXTREMES, hostile_picture, seed_picture
from rcnn_backend.contract.parameters import PreprocessParameters
from rcnn_backend.devices import Gpu
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.decode import ImageDecoder, decode_image

BATCH = 8
BOUND = 16  # levels of 255
GROWTH, SLACK_MIB = 0.1, 16.0  # allowed growth of memory between the second fifth of the batches and the last
MAX_IMAGE_PIXELS = 4_000_000
LIMITS = PreprocessParameters(800, 1333, None, [0.5] * 3, [0.2] * 3, 32, MAX_IMAGE_PIXELS)
JPEG = b"\xff\xd8"
FRAMES = (b"\xff\xc0", b"\xff\xc2")  # markers of baseline and progressive frame headers


def main() -> int:
    """Prints a summary of the results; returns 0 if there were no faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    device = Gpu(0)
    decoder = ImageDecoder(LIMITS, device)
    answers: Counter[str] = Counter()
    if decoder._jpeg_decoder:
        decoder._jpeg_decoder = CountingDecoder(decoder._jpeg_decoder, answers)  # type: ignore[assignment]
    faults: list[str] = []
    memory: list[dict[str, float]] = []
    started = time.monotonic()
    last = options.first + options.inputs
    with device.active():
        for first in range(options.first, last, BATCH):
            faults += check_batch(decoder, device, range(first, min(first + BATCH, last)), answers)
            memory.append(memory_mib())
    seconds = time.monotonic() - started
    print(f"{options.inputs} JPEGs in {seconds:.0f} s: {dict(answers)}")
    faults += grown(memory)
    if not answers["on the GPU"]:
        faults.append("nothing was decoded on the GPU: pip install 'rcnn-backend[gpu]'")
    print(*faults[:20], sep="\n")
    return 1 if faults else 0


class CountingDecoder:
    """A JPEG decoder that counts the JPEGs that it decodes."""

    def __init__(self, decoder: Any, answers: Counter[str]) -> None:
        self._decoder, self._answers = decoder, answers

    def decode(self, images: Sequence[bytes], max_image_pixels: int) -> list[Any]:
        pixels: list[Any] = self._decoder.decode(images, max_image_pixels)
        self._answers["on the GPU"] += sum(each is not None for each in pixels)
        return pixels


def make_jpeg(number: int) -> tuple[bytes, bool]:
    """The ``number``-th JPEG, and whether it is valid."""
    rng = random.Random(number)
    kind = rng.choice(("valid", "hostile", "hostile", "two frames"))
    while True:
        data = hostile_picture(rng.randrange(1 << 30)) if kind == "hostile" else seed_picture(rng)
        if data.startswith(JPEG):
            return (_with_second_frame(data, rng) if kind == "two frames" else data), kind == "valid"


def _with_second_frame(data: bytes, rng: random.Random) -> bytes:
    """Inserts another frame header, with another size, before or after the frame's own."""
    start = next(data.index(marker) for marker in FRAMES if marker in data)
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    other = bytearray(data[start:end])
    other[5:9] = struct.pack(">HH", rng.choice(EXTREMES) & 0xFFFF, rng.choice(EXTREMES) & 0xFFFF)
    place = rng.choice((start, end))
    return data[:place] + bytes(other) + data[place:]


def check_batch(
    decoder: ImageDecoder, device: Gpu, numbers: Sequence[int], answers: Counter[str]
) -> list[str]:
    """Decodes a batch, counts the results, and returns a line for each fault."""
    jpegs = [make_jpeg(number) for number in numbers]
    try:
        results = decoder.decode_requests([[data] for data, _ in jpegs])
        found = [
            result if isinstance(result, InvalidInputError) else device.download(result)[0]
            for result in results
        ]
    except Exception as error:
        return [f"JPEGs {numbers[0]} to {numbers[-1]}: {type(error).__name__}: {error}"]
    faults = []
    for number, (data, is_valid), result in zip(numbers, jpegs, found, strict=True):
        answer, is_fault = judge(data, is_valid, result)
        answers[answer] += 1
        if is_fault:
            faults.append(f"JPEG {number}: {answer}")
    return faults


def judge(data: bytes, is_valid: bool, result: np.ndarray | InvalidInputError) -> tuple[str, bool]:
    """A description of a JPEG's result, and whether the result is a fault."""
    if isinstance(result, InvalidInputError):
        return f"refused ({result.reason})", is_valid
    if result.dtype != np.uint8 or result.shape[0] * result.shape[1] > MAX_IMAGE_PIXELS:
        return f"{result.dtype} {result.shape}", True
    try:
        expected = decode_image(data, MAX_IMAGE_PIXELS)
    except InvalidInputError:
        return "pixels, but Pillow refuses it", is_valid
    if result.shape != expected.shape:
        return f"{result.shape}, but Pillow's is {expected.shape}", True
    if np.abs(result.astype(np.int16) - expected).max() <= BOUND:
        return "Pillow's pixels", False
    return f"{'valid' if is_valid else 'damaged'}, and other pixels than Pillow's", is_valid


def memory_mib() -> dict[str, float]:
    """Resident memory of this process, and the GPU memory in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    free, total = cupy.cuda.runtime.memGetInfo()
    return {"process": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "GPU": (total - free) / 2**20}


def grown(memory: Sequence[dict[str, float]]) -> list[str]:
    """A line for each name whose median in the last fifth of the batches is larger than in the second fifth."""
    fifth = max(1, len(memory) // 5)
    lines = []
    for name in memory[0]:
        early, late = (
            statistics.median(each[name] for each in part)
            for part in (memory[fifth : 2 * fifth] or memory[:1], memory[-fifth:])
        )
        if late > early * (1 + GROWTH) + SLACK_MIB:
            lines.append(f"{name}: grew from {early:.0f} to {late:.0f} MiB")
    return lines


if __name__ == "__main__":
    sys.exit(main())
