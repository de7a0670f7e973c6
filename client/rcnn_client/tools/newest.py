"""Reads only the newest of a series of items: an item that is not taken in time is dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")


def newest(items: Generator[T, None, None], ended: Callable[[int, int], object]) -> Generator[T, None, None]:
    """Read `items` in a separate thread, and yield only the newest; an item is dropped if the next arrives before it is taken.

    Args:
        items: closed when this generator ends; an exception in it is raised here, after the last item.
        ended: called at the end with the number of items that were dropped, and of all items that were read.
    """
    changed = threading.Condition()
    slot: list[T] = []
    failure: list[Exception] = []
    num_items = num_dropped = 0
    is_over = False  # there are no more items, or no more are needed

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
