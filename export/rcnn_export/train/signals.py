"""Ctrl-C and SIGTERM during training: the first signal ends training in an orderly way, the second at once."""

import os
import signal
import threading
from types import FrameType, TracebackType

from rich.console import Console

from rcnn_export.errors import INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """A request to stop, made by a signal while this context is entered.

    The first signal is acknowledged at once; the second ends the process. Python calls a signal's handler
    between two of its own instructions, which can be seconds late during a backward pass. So a thread reads the
    signals from the interpreter's wake-up file descriptor.

    Args:
        console: prints the acknowledgement of the first signal.
        ends_at_second: False under torchrun, which forwards a signal that the terminal already sent to all processes.
    """

    def __init__(self, console: Console, ends_at_second: bool = True) -> None:
        self._console = console
        self._ends_at_second = ends_at_second
        self._requested = threading.Event()

    def requested(self) -> bool:
        """Whether a signal came."""
        return self._requested.is_set()

    def __enter__(self) -> "StopSignals":
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._previous_file = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        self._thread = threading.Thread(target=self._acknowledge, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_file)
        os.write(self._write_end, b"\0")
        self._thread.join()
        os.close(self._write_end)
        os.close(self._read_end)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._requested.set()

    def _acknowledge(self) -> None:
        num_seen = 0
        while number := os.read(self._read_end, 1)[0]:  # 0 comes from __exit__
            if number not in SIGNALS:
                continue
            num_seen += 1
            if num_seen == 1:
                again = "; Ctrl-C again stops at once" if self._ends_at_second else ""
                self._console.print(f"stopping after this step{again}")
            elif self._ends_at_second:
                self._console.show_cursor()
                self._console.print("stopped at once: --resume continues from the latest checkpoint")
                os._exit(INTERRUPTED)
