"""rcnn-perf: measures throughput, latency and the time of each step with a folder of pictures."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .. import RcnnError
from .console import complain, progress_bar, stderr
from .endpoint import Endpoint
from .perf_analyzer import PerfAnalyzer, PerfAnalyzerError, find_perf_analyzer, write_input
from .perf_arguments import MAX_PICTURES, PROG, parse
from .perf_report import Measurement, latency_table, plot, step_table
from .picture_files import picture_suffixes
from .triton_statistics import Statistics


def main(argv: Sequence[str] | None = None) -> int:
    """Run rcnn-perf; returns the exit code: 0, or 1 if something failed. Wrong usage exits with 2."""
    args = parse(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="rcnn-perf-") as libraries:
            analyzer = find_perf_analyzer(Path(libraries))
            pictures = choose_pictures(args.images)
            args.out.mkdir(parents=True, exist_ok=True)
            endpoint = Endpoint.of(args)
            with Statistics(endpoint) as statistics:
                usable = _warm_up(pictures, endpoint, max(args.in_flight))
                if not usable:
                    return complain(PROG, f"none of the {len(pictures)} pictures was answered")
                write_input(usable, args.out / "input.json")
                measurements, code = _measure(analyzer, statistics, endpoint, args)
    except (RcnnError, PerfAnalyzerError, OSError, ValueError) as error:
        return complain(PROG, error)

    console = Console(highlight=False)
    print(f"{endpoint}, {len(usable)} pictures in turn")
    console.print(latency_table(measurements))
    console.print(step_table(args.model, measurements))
    plot(str(endpoint), measurements, args.out / "throughput_latency.png")
    content = [dataclasses.asdict(each) for each in measurements]
    (args.out / "measurements.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"plot, measurements and perf_analyzer's input are in {args.out}")
    return code if len(usable) == len(pictures) else 1


def choose_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, by file extension; if there are more than 100, every n-th of them by name.

    Raises:
        ValueError: there is none.
        OSError: the folder cannot be read.
    """
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in picture_suffixes())
    if not pictures:
        raise ValueError(f"{folder} holds no picture: expected files such as .jpg or .png")
    count = min(len(pictures), MAX_PICTURES)
    return [pictures[position * len(pictures) // count] for position in range(count)]


def _warm_up(pictures: list[Path], endpoint: Endpoint, in_flight: int) -> list[Path]:
    """Send each picture once; returns those that were answered. perf_analyzer would stop at one that is not."""
    usable = []
    with progress_bar() as progress, endpoint.connect() as detector:
        task = progress.add_task("warming up", total=len(pictures))
        for result in detector.detect_stream(pictures, in_flight=in_flight):
            progress.advance(task)
            if result.error is None:
                usable.append(result.image)
            else:
                complain(PROG, result.error)
    return usable


def _measure(
    analyzer: PerfAnalyzer, statistics: Statistics, endpoint: Endpoint, args: argparse.Namespace
) -> tuple[list[Measurement], int]:
    """Measure each number of pictures in flight; failures are printed. Returns the measurements and the exit code."""
    measurements, code = [], 0
    for in_flight in args.in_flight:
        before = statistics.read()
        latencies = None
        with stderr.status(f"{in_flight} in flight, {args.seconds} s"):
            try:
                data = args.out / "input.json"
                latencies = analyzer.measure(
                    endpoint.url,
                    endpoint.model,
                    data,
                    in_flight,
                    args.seconds,
                    tls=endpoint.tls,
                    headers=endpoint.headers,
                )
            except PerfAnalyzerError as error:
                code = complain(PROG, f"{in_flight} in flight: {error}")
        after = statistics.read()
        num_failed, steps = statistics.num_failed(before, after), statistics.step_times(before, after)
        measurements.append(Measurement(in_flight, latencies, num_failed, steps))
    return measurements, code


if __name__ == "__main__":
    sys.exit(main())
