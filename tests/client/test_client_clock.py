"""The clock of the client's machine is set back by an hour during a request: no call waits for that hour."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# These tests compare times, and other tests may keep the processors busy.
pytestmark = pytest.mark.flaky(reruns=2)

CLIENT = """
import asyncio, ctypes, sys, threading, time
from rcnn_client import DeadlineExceededError, Detector, ServerUnavailableError, aio

url, nobody, pictures = sys.argv[1], sys.argv[2], [bytes.fromhex(each) for each in sys.argv[3:]]
FAST, SLOW = pictures
hours = 0

def set_back():
    global hours
    hours += 1
    ctypes.CDLL(None).set_back(3600 * hours)

def timed(detect):
    before, began = time.time(), time.monotonic()
    threading.Timer(0.2, set_back).start()
    detect()
    assert time.time() < before, "the clock was not set back"
    assert time.monotonic() - began < 2.5, detect.__name__

def answered():
    with Detector([url, nobody]) as detector:
        list(detector.detect_stream([FAST] * 4, in_flight=2))

async def answered_async():
    async with aio.Detector([url, nobody]) as detector:
        await detector.detect_batch([FAST] * 4, in_flight=2)

def out_of_time():
    try:
        with Detector(url, timeout_s=1) as detector:
            detector.detect(SLOW)
    except DeadlineExceededError:
        return
    assert False, "no error"

async def out_of_time_async():
    try:
        async with aio.Detector(url, timeout_s=1) as detector:
            await detector.detect(SLOW)
    except DeadlineExceededError:
        return
    assert False, "no error"

def not_served():
    try:
        with Detector(nobody, timeout_s=1) as detector:
            detector.detect(FAST)
    except ServerUnavailableError:
        return
    assert False, "no error"

def run(plan):
    def ask():
        asyncio.run(plan())
    ask.__name__ = plan.__name__
    return ask

for detect in answered, run(answered_async), out_of_time, run(out_of_time_async), not_served:
    timed(detect)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler: apt install gcc")
def test_the_clock_is_set_back(server, png, tmp_path):
    shim = tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    server.delay_s = lambda label: {1: 0.3, 2: 4.0}[label]
    command = [sys.executable, "-c", CLIENT, server.url, "127.0.0.1:1", png(1).hex(), png(2).hex()]
    result = subprocess.run(
        command, env=os.environ | {"LD_PRELOAD": str(shim)}, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
