import os
import signal
import subprocess
import sys
import threading

from rcnn_export.errors import INTERRUPTED
from rcnn_export.train.signals import StopSignals
from rich.console import Console

# One long call in C, during which Python runs no signal handler, as in a backward pass, but longer.
STEP = """
import hashlib
from rcnn_export.train.signals import StopSignals
from rich.console import Console
with StopSignals(Console()):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def test_the_first_signal_is_acknowledged_within_a_step_and_the_second_ends_it() -> None:
    with subprocess.Popen([sys.executable, "-c", STEP], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "stopping after this step; Ctrl-C again stops at once\n"
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == INTERRUPTED
            assert "stopped at once: --resume continues" in process.stdout.read()
        finally:
            process.kill()


def test_under_torchrun_a_repeated_signal_is_one_request() -> None:
    before = signal.getsignal(signal.SIGTERM), threading.active_count()
    with StopSignals(Console(quiet=True), ends_at_second=False) as stop:
        assert not stop.requested()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.requested()
    assert (signal.getsignal(signal.SIGTERM), threading.active_count()) == before
