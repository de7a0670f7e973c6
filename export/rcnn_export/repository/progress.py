"""Shows that a long step is running, what it does and how far it is."""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

INTERVAL_S = 30.0
T = TypeVar("T")


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


def counted(
    items: Collection[T], report: Callable[[str], None], text: str, interval_s: float = INTERVAL_S
) -> Iterator[T]:
    """Yields the items, and reports how many of them are done each time ``interval_s`` has passed.

    Args:
        text: with two fields, such as ``Ran {} of {} pictures``.
    """
    reported = time.monotonic()
    for done, item in enumerate(items):
        if (now := time.monotonic()) - reported >= interval_s:
            report(text.format(done, len(items)))
            reported = now
        yield item
