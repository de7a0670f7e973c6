"""How long a call and each of its attempts may take."""

from __future__ import annotations

import copy
import time

import numpy as np

from ._errors import InvalidParameterError

MIN_SHARE_S = 1.0


class Deadline:
    """`timeout_s` seconds from now.

    Attributes:
        can_move: whether the call may go to another server before its deadline, if this one hangs.

    Raises:
        InvalidParameterError: `timeout_s` is not a positive, finite number.
    """

    def __init__(self, timeout_s: float) -> None:
        if not (isinstance(timeout_s, int | float | np.number) and 0 < timeout_s < float("inf")):
            raise InvalidParameterError(f"timeout_s is {timeout_s!r}, expected a positive number of seconds")
        self.timeout_s = timeout_s
        self.can_move = False
        self._end = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds left; negative after the deadline."""
        return self._end - time.monotonic()

    def at_most(self, limit_s: float) -> Deadline:
        """This deadline, or an earlier one `limit_s` seconds from now."""
        earlier = copy.copy(self)
        earlier._end = min(self._end, time.monotonic() + limit_s)
        return earlier

    def short(self, limit_s: float) -> Deadline:
        """The deadline of a call that a server answers at once: `limit_s`, or half of the time left if that is less."""
        soon = self.at_most(min(limit_s, self.left_s() / 2))
        soon.can_move = False
        return soon

    def share(self) -> Deadline:
        """The deadline of an attempt while there is a server that was not tried yet: a quarter of the time left.

        It is at least a second: a shorter time would not distinguish a server that hangs from a slow one.
        """
        return self.at_most(max(self.left_s() / 4, MIN_SHARE_S))

    def movable(self) -> Deadline:
        """This deadline, for a call that may move to another server."""
        same = copy.copy(self)
        same.can_move = True
        return same
