"""Runs requests in batches. A request that fails does not fail the rest of its batch."""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from rcnn_backend.devices import Device

Result = TypeVar("Result")


def run_batches(
    run: Callable[[list[int]], Sequence[Result]], batches: Iterable[list[int]], device: Device
) -> dict[int, Result | Exception]:
    """Runs each batch. If a batch fails, its requests run again one by one.

    A smaller batch can succeed where the larger one ran out of memory. Nothing runs on a device that
    is no longer usable: every request without a result gets the error.

    Args:
        run: computes the requests of a batch, given by their numbers, and returns a result for each.
        batches: the numbers of the requests that run together.
        device: the device that ``run`` computes on.

    Returns:
        Each request's result, or the exception that ``run`` raised for this request.
    """
    results: dict[int, Result | Exception] = {}
    waiting = deque(batches)
    while waiting:
        batch = waiting.popleft()
        try:
            results.update(zip(batch, run(batch), strict=True))
        except Exception as error:
            if not device.is_usable():
                return results | dict.fromkeys(itertools.chain(batch, *waiting), error)
            if len(batch) == 1:
                results[batch[0]] = error
                continue
            logging.getLogger(__name__).warning(
                "a batch of %d requests failed and runs again request by request: %r", len(batch), error
            )
            waiting.extendleft([number] for number in reversed(batch))
    return results
