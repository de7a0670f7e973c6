"""A bad request in a batch fails alone, and nothing runs on a GPU that failed."""

import pytest
from rcnn_backend.batches import run_batches
from rcnn_backend.devices import Cpu


class Worker:
    """Doubles numbers, up to ``most`` at a time; 13 is refused, and 666 makes the device unusable."""

    def __init__(self, most: int = 8) -> None:
        self.most = most
        self.ran: list[list[int]] = []
        self.device = Cpu()

    def run(self, batch: list[int]) -> list[int]:
        self.ran.append(batch)
        if len(batch) > self.most:
            raise MemoryError(f"{len(batch)} do not fit")
        if 666 in batch:
            self.device.is_usable = lambda: False
            raise RuntimeError("illegal access")
        if 13 in batch:
            raise ValueError(f"13 among {len(batch)}")
        return [2 * number for number in batch]


def test_batches_that_succeed_run_once() -> None:
    worker = Worker()
    assert run_batches(worker.run, [[1, 3], [2]], worker.device) == {1: 2, 2: 4, 3: 6}
    assert worker.ran == [[1, 3], [2]]
    assert run_batches(worker.run, [], worker.device) == {}


def test_a_request_that_cannot_run_fails_alone_with_its_own_error(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker()
    results = run_batches(worker.run, [[1, 13, 2], [3, 4]], worker.device)
    assert str(results.pop(13)) == "13 among 1"
    assert results == {1: 2, 2: 4, 3: 6, 4: 8}
    assert worker.ran == [[1, 13, 2], [1], [13], [2], [3, 4]]
    assert "a batch of 3 requests failed and runs again request by request" in caplog.text


def test_a_batch_of_one_is_not_tried_again() -> None:
    worker = Worker()
    assert isinstance(run_batches(worker.run, [[13]], worker.device)[13], ValueError)
    assert worker.ran == [[13]]


def test_a_batch_too_large_for_the_memory_runs_request_by_request() -> None:
    worker = Worker(most=2)
    assert run_batches(worker.run, [[1, 2, 3]], worker.device) == {1: 2, 2: 4, 3: 6}


def test_nothing_runs_on_a_device_that_is_unusable() -> None:
    worker = Worker()
    results = run_batches(worker.run, [[1], [2, 666, 3], [4, 5]], worker.device)
    assert worker.ran == [[1], [2, 666, 3]]
    assert results.pop(1) == 2
    assert results.keys() == {2, 666, 3, 4, 5}
    assert {str(error) for error in results.values()} == {"illegal access"}


def test_a_device_that_fails_while_requests_run_one_by_one() -> None:
    worker = Worker(most=2)
    results = run_batches(worker.run, [[1, 666, 2]], worker.device)
    assert worker.ran == [[1, 666, 2], [1], [666]]
    assert results.pop(1) == 2
    assert {str(error) for error in results.values()} == {"illegal access"}
