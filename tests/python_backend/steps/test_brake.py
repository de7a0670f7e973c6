"""How far the first step runs ahead of the networks."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rcnn_backend.contract.chain import FASTER_RCNN
from rcnn_backend.contract.executions import NUMBER, VARIABLE
from rcnn_backend.steps.brake import Brake, open_brake


class Instances:
    """The numbers of executions that the instances of digits_rpn show."""

    def __init__(self, prefix: Path) -> None:
        self._prefix = prefix

    def show(self, *numbers: int) -> None:
        for pid, number in enumerate(numbers):
            Path(f"{self._prefix}{pid}").write_bytes(NUMBER.pack(number) + b"digits_rpn")


@pytest.fixture
def instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instances]:
    prefix = tmp_path / "executions-"
    monkeypatch.setenv(VARIABLE, str(prefix))
    shown = Instances(prefix)
    yield shown
    shown.show(0, 0)  # threads that still wait end


@pytest.fixture
def brake() -> Brake:
    opened = open_brake("digits_preprocess", FASTER_RCNN, "preprocess")
    assert opened
    return opened


def executes(brake: Brake, within_s: float) -> threading.Thread:
    """One execution of the first step; the thread is alive if it has not ended within that time."""

    def execute() -> None:
        with brake:
            pass

    thread = threading.Thread(target=execute, daemon=True)
    thread.start()
    thread.join(within_s)
    return thread


def test_one_execution_waits_for_the_networks_and_the_next_waits_for_that(
    brake: Brake, instances: Instances
) -> None:
    instances.show(7)
    assert not executes(brake, 5).is_alive()  # decoded, and waits while the networks are at number 7
    waiting = executes(brake, 0.1)
    assert waiting.is_alive()
    instances.show(9)  # the networks took it
    waiting.join(5)
    assert not waiting.is_alive()
    assert executes(brake, 0.1).is_alive()


def test_nothing_waits_for_networks_that_are_idle(brake: Brake, instances: Instances) -> None:
    """What was sent to them may have been cancelled on the way."""
    instances.show(8)
    assert not any(executes(brake, 5).is_alive() for _ in range(3))
    instances.show(9, 4)
    assert not any(executes(brake, 5).is_alive() for _ in range(3))


def test_nothing_waits_for_networks_that_show_no_numbers(brake: Brake, instances: Instances) -> None:
    assert not any(executes(brake, 5).is_alive() for _ in range(3))


def test_only_the_first_step_has_a_brake() -> None:
    first, *others = (step.name for step in FASTER_RCNN.steps)
    assert open_brake(f"digits_{first}", FASTER_RCNN, first)
    assert not any(open_brake(f"digits_{name}", FASTER_RCNN, name) for name in others)
