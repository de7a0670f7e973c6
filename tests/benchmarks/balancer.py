"""Two servers behind nginx: how the load is shared, and what is lost when one is killed (`make bench-balancer`)."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import tritonclient.grpc as triton
from balancer_nginx import nginx_command
from pictures import is_same
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_client import Detector, Result

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted((ROOT / "export" / "samples" / "pictures").glob("*.jpg"))


@contextlib.contextmanager
def nginx(servers: Sequence[RunningServer], folder: Path) -> Iterator[str]:
    """Runs nginx in front of the servers; yields its ``host:port``."""
    url, command = nginx_command([server.grpc_url for server in servers], folder)
    process = subprocess.Popen(command)
    try:
        yield url
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(10)


def num_served(server: RunningServer) -> int:
    """Requests that the server has answered."""
    with triton.InferenceServerClient(server.grpc_url) as client:
        statistics = client.get_inference_statistics("digits").model_stats[0]
    return int(statistics.inference_stats.success.count)


def kill_when_half_is_done(servers: Sequence[RunningServer], num_requests: int, shares: list[int]) -> None:
    """Kills the first server halfway, and writes to ``shares`` how many requests each server had answered by then."""
    before = [num_served(server) for server in servers]
    while sum(shares) < num_requests / 2:
        time.sleep(0.05)
        shares[:] = [num_served(server) - count for server, count in zip(servers, before, strict=True)]
    os.kill(servers[0].process.pid, signal.SIGKILL)


def main() -> int:
    """Prints the shares and the answers; returns 1 if a request was lost or the load was not shared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", nargs="?", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(running_server(options.repository, ["digits"])) for _ in range(2)]
        url = stack.enter_context(nginx(servers, folder))
        for server in servers:  # warms both, so that they are equally fast
            with Detector(server.grpc_url, "digits") as detector:
                expected = [detector.detect(picture) for picture in PICTURES]
        shares: list[int] = []
        killer = threading.Thread(target=kill_when_half_is_done, args=(servers, options.requests, shares))
        killer.start()
        start = time.monotonic()
        with Detector(url, "digits") as detector:
            pictures = (PICTURES[index % len(PICTURES)] for index in range(options.requests))
            answers: list[Result] = list(detector.detect_stream(pictures, in_flight=8))
        seconds = time.monotonic() - start
        killer.join()
        cut_off = (folder / "errors").read_text().count("upstream prematurely closed")
    wrong = sum(
        answer.error is not None or not is_same(answer.detections, expected[index % len(PICTURES)])
        for index, answer in enumerate(answers)
    )
    print(f"{shares[0]} and {shares[1]} requests answered when the first server was killed")
    print(
        f"{len(answers)} of {options.requests} requests answered in {seconds:.0f} s, {wrong} of them wrongly"
    )
    print(f"{cut_off} of them were at the first server when it was killed, and the client sent them again")
    shared = min(shares) > 0.25 * sum(shares)
    return 0 if len(answers) == options.requests and not wrong and shared else 1


if __name__ == "__main__":
    sys.exit(main())
