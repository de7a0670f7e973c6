"""GPUs, hosts, network and decoding cores that a number of images per second needs: the tables of SIZING.md.

python deploy/sizing.py                  prints the tables for the measured rates
python deploy/sizing.py --per-gpu 120    prints one table for your own rate, in images per second of one GPU
"""

import argparse
import math

# Images a second of one GPU under load, JPEGs of 800x1333 over gRPC, fasterrcnn_resnet50_fpn.
# The only place for these numbers. They are measured on one GPU (`make bench`, `make bench-gpus`), never derived. If you
# add one, copy this script's output into SIZING.md, between the two HTML comments.
MEASURED = {
    "H100, ONNX Runtime FP32, the ensemble": 38.0,
    "H100, AOTInductor FP16, the ensemble with --mps": 344.0,
    "H100, AOTInductor FP16, the fused model": 494.0,
    "H100, cuDNN FP16, the fused model": 657.0,
}

RATES = (1, 100, 10_000)  # images a second
BUSY = 0.7  # share of the measured rate: above it, queues and therefore the p99 grow steeply
GPUS_PER_HOST = 8
JPEG_BYTES = 240_000  # 800x1333, quality 90, with camera noise
ANSWER_BYTES = 100 * (16 + 4 + 8) + 4  # 100 rows of boxes, scores and labels, and num_detections
DECODE_S = 0.0058  # time in which Pillow decodes such a JPEG on one core


def row(rate: float, per_gpu: float) -> list[str]:
    """The columns of HEADER, for ``rate`` images per second."""
    gpus = math.ceil(rate / (per_gpu * BUSY))
    hosts = math.ceil(gpus / GPUS_PER_HOST)
    gigabits = [rate * size * 8 / 1e9 for size in (JPEG_BYTES, 800 * 1333 * 3, ANSWER_BYTES)]
    cores = math.ceil(rate * DECODE_S / BUSY)
    return [f"{rate:,}", f"{gpus:,}", f"{hosts:,}", *(f"{each:.3g}" for each in gigabits), f"{cores:,}"]


HEADER = [
    "images/s",
    "GPUs",
    "hosts of 8",
    "in, JPEG, Gbit/s",
    "in, raw, Gbit/s",
    "out, Gbit/s",
    "cores to decode",
]


def table(title: str, per_gpu: float) -> str:
    """A Markdown table for one measured rate."""
    rows = [HEADER, ["---:"] * len(HEADER), *(row(rate, per_gpu) for rate in RATES)]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([f"**{title}: {per_gpu:g} images/s a GPU**", "", *lines])


def tables() -> str:
    """One table for each measurement."""
    return "\n\n".join(table(title, per_gpu) for title, per_gpu in MEASURED.items())


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--per-gpu", metavar="IMAGES_A_SECOND", type=float, help="your measured rate of one GPU"
    )
    per_gpu = parser.parse_args().per_gpu
    if per_gpu is not None and not per_gpu > 0:
        parser.error(f"--per-gpu is {per_gpu}, expected more than 0: rcnn-perf measures it")
    print(tables() if per_gpu is None else table("Yours", per_gpu))


if __name__ == "__main__":
    main()
