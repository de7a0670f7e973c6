"""How many cases a run has."""

from .cases import CASES, GPU_CASES


def test_a_run_has_thousands_of_cases() -> None:
    assert sum(CASES.values()) >= 5_000
    assert sum(GPU_CASES.values()) >= 50_000
