"""A long step reports regularly that it is still running, and stops reporting when it ends."""

import time

import pytest
from rcnn_export.repository.progress import counted, still_running


def test_a_long_step_is_reported_until_it_ends() -> None:
    lines: list[str] = []
    with still_running(lines.append, "exporting the rpn", interval_s=0.01):
        deadline = time.monotonic() + 10
        while len(lines) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
    told = len(lines)
    assert told >= 2
    assert all(line == "Still exporting the rpn (0 s)" for line in lines[:2])
    time.sleep(0.05)
    assert len(lines) == told


def test_a_step_that_fails_is_reported_no_longer() -> None:
    lines: list[str] = []
    with pytest.raises(KeyError), still_running(lines.append, "exporting the rpn", interval_s=0.01):
        raise KeyError
    time.sleep(0.05)
    assert lines == []


def test_items_are_counted_while_they_take_long() -> None:
    lines: list[str] = []
    assert list(counted("abc", lines.append, "Ran {} of {} pictures", interval_s=0)) == ["a", "b", "c"]
    assert lines == ["Ran 0 of 3 pictures", "Ran 1 of 3 pictures", "Ran 2 of 3 pictures"]
    assert list(counted("abc", lines.append, "Ran {} of {} pictures", interval_s=60)) == ["a", "b", "c"]
    assert len(lines) == 3
