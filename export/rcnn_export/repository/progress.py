"""Shows that a long step is at work, and on what."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

INTERVAL_S = 30.0


@contextlib.contextmanager
def still_running(
    report: Callable[[str], None], activity: str, interval_s: float = INTERVAL_S
) -> Iterator[None]:
    """Reports ``Still <activity> (30 s)``, from another thread, each time ``interval_s`` has passed."""
    started, ended = time.monotonic(), threading.Event()

    def tell() -> None:
        while not ended.wait(interval_s):
            report(f"Still {activity} ({time.monotonic() - started:.0f} s)")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
