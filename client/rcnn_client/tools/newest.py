"""The newest of what keeps coming: what nobody took in time is dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")


def newest(items: Generator[T, None, None], ended: Callable[[int, int], object]) -> Generator[T, None, None]:
    """Read in a thread of its own, and yield only what came last; an item that is not taken by then is dropped.

    Args:
        items: closed when this ends; what it raises is raised here, after the last item.
        ended: called at the end with how many items were dropped, and how many came.
    """
    changed = threading.Condition()
    slot: list[T] = []
    failure: list[Exception] = []
    num_items = num_dropped = 0
    is_over = False  # nothing more comes, or nothing more is wanted

    def read() -> None:
        nonlocal num_items, num_dropped, is_over
        try:
            for item in items:
                with changed:
                    if is_over:
                        break
                    num_items += 1
                    num_dropped += len(slot)
                    slot[:] = [item]
                    changed.notify()
        except Exception as error:
            failure.append(error)
        finally:
            items.close()
            with changed:
                is_over = True
                changed.notify()

    reader = threading.Thread(target=read, name="rcnn-video", daemon=True)
    reader.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: slot or is_over)
                if not slot:
                    break
                item = slot.pop()
            yield item
        if failure:
            raise failure[0]
    finally:
        with changed:
            is_over = True
        reader.join(timeout=1)  # longer only if the camera is silent
        ended(num_dropped + len(slot), num_items)
