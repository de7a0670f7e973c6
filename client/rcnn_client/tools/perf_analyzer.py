"""Finds and runs NVIDIA's perf_analyzer, writes its input and reads its results."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .._connection import TLSConfig
from .._proxies import host_of, is_loopback

NUM_WINDOWS = 3  # perf_analyzer reports the mean of its last three windows
INSTALL = {
    "libb64": "apt install libb64-0d",
    "libcudart": "pip install nvidia-cuda-runtime-cu12",
}


class PerfAnalyzerError(Exception):
    """perf_analyzer cannot run here, or did not finish; the message says why."""


@dataclass(frozen=True)
class Latencies:
    """The results of perf_analyzer for one number of requests in flight."""

    images_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True)
class PerfAnalyzer:
    """A working perf_analyzer, and the folders of the libraries that it needs."""

    program: Path
    library_path: str

    def measure(
        self,
        url: str,
        model: str,
        data: Path,
        in_flight: int,
        seconds: float,
        parameters: Mapping[str, int] = MappingProxyType({}),
        *,
        tls: TLSConfig | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Latencies:
        """Measure over gRPC with `in_flight` requests in flight, for about `seconds`.

        Args:
            data: what `write_input` wrote.
            parameters: sent with each request, such as `detections_per_img`.
            tls, headers: as `Detector` takes them.

        Raises:
            PerfAnalyzerError: it failed: a request failed, or too few were answered in time.
        """
        report = data.with_name("perf_analyzer.csv")
        report.unlink(missing_ok=True)
        window_ms = max(1, round(1000 * seconds / NUM_WINDOWS))
        arguments: list[str | Path] = ["-m", model, "-u", url, "-i", "grpc"]
        arguments += ["--input-data", data, "-f", report]
        arguments += ["--concurrency-range", str(in_flight), "-p", str(window_ms)]
        arguments += ["--max-trials", str(NUM_WINDOWS), "--stability-percentage", "999"]  # no further windows
        for name, value in parameters.items():
            arguments += ["--request-parameter", f"{name}:{value}:int"]
        for name, text in (headers or {}).items():
            arguments += ["-H", f"{name}:{text}"]
        arguments += _tls_arguments(tls)
        try:
            direct = {"no_grpc_proxy": host_of(url)} if is_loopback(url) else {}
            done = self._run(*arguments, timeout_s=10 * seconds + 300, **direct)
        except subprocess.TimeoutExpired as error:
            raise PerfAnalyzerError(f"perf_analyzer did not end within {error.timeout:g} s") from error
        if done.returncode or not report.exists():
            raise PerfAnalyzerError(_reason(done.stderr + done.stdout))
        try:
            with report.open(newline="") as lines:
                (row,) = csv.DictReader(lines)
            percentiles = (float(row[f"p{percent} latency"]) / 1000 for percent in (50, 90, 99))
            return Latencies(float(row["Inferences/Second"]), *percentiles)
        finally:
            report.unlink()

    def _run(
        self, *arguments: str | Path, timeout_s: float, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *arguments],
            env={**os.environ, "LD_LIBRARY_PATH": self.library_path} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )


def find_perf_analyzer(folder: Path) -> PerfAnalyzer:
    """Find a working perf_analyzer: on PATH, or in this environment, where tritonclient's wheel puts it.

    Libraries that the system lacks are taken from installed wheels: from NVIDIA's own, or from a wheel that
    contains a renamed copy.

    Args:
        folder: an empty folder for links to libraries, which must last as long as perf_analyzer is used.

    Raises:
        PerfAnalyzerError: there is none, or it does not start; the message says what to install.
    """
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("perf_analyzer") or shutil.which("perf_analyzer", path=scripts)
    if not found:
        raise PerfAnalyzerError(
            f"perf_analyzer is neither on PATH nor in {scripts}: pip install 'tritonclient[grpc]==2.51.0' "
            "installs it on x86-64 Linux; NVIDIA's tritonserver SDK image contains it, too"
        )
    inherited = os.environ.get("LD_LIBRARY_PATH")
    library_path = f"{folder}:{inherited}" if inherited else str(folder)
    analyzer = PerfAnalyzer(Path(found), library_path)
    while True:
        try:
            done = analyzer._run("--version", timeout_s=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PerfAnalyzerError(f"{found} does not start: {error}") from error
        if done.returncode == 0:
            return analyzer
        said = (done.stderr + done.stdout).strip()
        missing = re.search(r"loading shared libraries: (\S+?): cannot open", said)
        if not missing or (folder / missing[1]).exists():
            raise PerfAnalyzerError(f"{found} does not start: {said}")
        library = find_library(missing[1], [Path(entry) for entry in sys.path])
        if library is None:
            how = INSTALL.get(missing[1].partition(".")[0], "install the package that contains it")
            raise PerfAnalyzerError(f"{found} does not start, as {missing[1]} is missing: {how}")
        (folder / missing[1]).symlink_to(library)


def find_library(name: str, packages: Iterable[Path]) -> Path | None:
    """Find a shared library in the wheels of these folders: libx.so.1, or libx-0123abcd.so.1.2 as bundled."""
    stem, _, version = name.partition(".so")
    for folder in packages:
        for pattern in (f"nvidia/*/lib/{name}", f"*.libs/{stem}-*.so{version}*"):
            if found := sorted(folder.glob(pattern)):
                return found[0].resolve()
    return None


def write_input(pictures: Iterable[Path], path: Path) -> None:
    """Write perf_analyzer's input: one request per picture.

    A BYTES element goes over the wire as a 4-byte little-endian length and its content.
    """
    data = []
    for picture in pictures:
        content = picture.read_bytes()
        element = len(content).to_bytes(4, "little") + content
        data.append({"image": {"b64": base64.b64encode(element).decode("ascii")}})
    path.write_text(json.dumps({"data": data}))


def _tls_arguments(tls: TLSConfig | None) -> list[str]:
    if tls is None:
        return []
    files = {
        "root-certifications-file": tls.ca,
        "private-key-file": tls.key,
        "certificate-chain-file": tls.cert,
    }
    given = [(f"--ssl-grpc-{name}", str(path)) for name, path in files.items() if path is not None]
    return ["--ssl-grpc-use-ssl", *(text for pair in given for text in pair)]


def _reason(said: str) -> str:
    """The lines that mention an error; if there are none, the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"error|fail|No valid requests", line, re.IGNORECASE)]
    return "perf_analyzer: " + (" ".join(dict.fromkeys(named[:4])) or (lines or ["it printed nothing"])[-1])
