"""A step on the real tritonserver whose GPU fails permanently; a stand-in replaces the GPU."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

pytestmark = pytest.mark.xdist_group("server")

CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
instance_group { kind: KIND_CPU }
dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 2000000 }
"""
MODEL = """
from rcnn_backend.devices import Cpu
from rcnn_backend.steps.step import Step


class FailingGpu(Cpu):
    usable = True

    def is_usable(self):
        return self.usable


class TritonPythonModel:
    def initialize(self, args):
        self.step = Step(args)
        self.step.device = DEVICE()

    def execute(self, requests):
        return self.step.answer_together(requests, self.compute)

    def compute(self, tensors, options):
        if (tensors["x"] < 0).any():
            self.step.device.usable = False
            raise RuntimeError("an illegal memory access was encountered")
        return {"y": 2 * tensors["x"]}
"""
ABOUT_TO_END = "its process is about to end"


@contextmanager
def serving(repository: Path, device: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of ``rcnn-serve`` with the model ``doubling``, and the address of its gRPC endpoint."""
    folder = repository / "doubling" / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(CONFIG)
    (folder / "model.py").write_text(MODEL.replace("DEVICE", device))
    ports = [f"--{protocol}-port=0" for protocol in ("http", "grpc", "metrics")]
    command = [Path(sys.executable).with_name("rcnn-serve"), repository, *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if line.startswith("Serving"))
            yield process, re.findall(r"grpc (\S+?:\d+)", line)[0]
        finally:
            process.terminate()


def ask(url: str, *values: float) -> list[str]:
    """Send these values as simultaneous requests; returns for each the answer ``y`` or the error's message."""
    answers = [""] * len(values)

    def infer(index: int) -> None:
        given = triton.InferInput("x", [1, 1], "FP32")
        given.set_data_from_numpy(np.array([[values[index]]], np.float32))
        with triton.InferenceServerClient(url) as client:
            try:
                answer = client.infer("doubling", [given], client_timeout=30)
                answers[index] = f"{answer.as_numpy('y').item():g}"
            except triton.InferenceServerException as error:
                answers[index] = f"{error.status()}: {error.message()}"

    threads = [threading.Thread(target=infer, args=(index,)) for index in range(len(values))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_the_process_ends_after_it_has_answered(tmp_path: Path) -> None:
    with serving(tmp_path, "FailingGpu") as (process, url):
        assert ask(url, 1, 2, 3, 4) == ["2", "4", "6", "8"]
        answers = ask(url, 1, -2, 3, 4)
        assert len(set(answers)) == 1
        assert re.fullmatch(r".*INTERNAL: RuntimeError: an illegal memory access.*", answers[0])
        later = ask(url, *range(4))
        assert len(set(later)) == 1
        assert re.fullmatch(rf".*UNAVAILABLE: .*{ABOUT_TO_END}", later[0])
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the GPU failed and this process cannot use it again" in stderr
    assert "rcnn-serve: the process of doubling_0" in stderr


@pytest.mark.long
def test_under_load_every_request_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path, "FailingGpu") as (process, url):
        began = time.monotonic()
        assert "illegal memory access" in "".join(ask(url, -1, 1, 1, 1))
        answers = []
        while process.poll() is None and time.monotonic() < began + 60:
            answers += ask(url, *range(4))
        assert process.poll() == 1
    refused = [answer for answer in answers if answer.endswith(ABOUT_TO_END)]
    assert len(refused) >= 8
    assert answers[: len(refused)] == refused  # after these the process had ended


def test_an_error_on_a_cpu_ends_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, "Cpu") as (process, url):
        first, refused, *others = ask(url, 1, -2, 3, 4)
        assert "illegal memory access" in refused
        assert [first, *others] == ["2", "6", "8"]
        time.sleep(2)
        assert ask(url, 1, 2, 3, 4) == ["2", "4", "6", "8"]
        assert process.poll() is None
