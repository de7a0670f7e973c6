"""Loads GPU operators on a CPU: their kernel launches are recorded instead."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor


class Launch(NamedTuple):
    """The arguments of a call of ``torch_kernels.launch``, without the tensor that names the GPU."""

    source: str
    expression: str
    grid: tuple[int, ...]
    threads: int
    arguments: tuple[Any, ...]
    shared_bytes: int


@pytest.fixture
def launched() -> list[Launch]:
    """The launches of the modules that ``load_operators`` has loaded."""
    return []


@pytest.fixture
def load_operators(
    load_with_fakes: Callable[[str, dict[str, Any]], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    launched: list[Launch],
) -> Callable[[str], ModuleType]:
    """load_operators(name): a copy of the module ``rcnn_backend.engines.<name>``."""

    def launch(
        source: str,
        expression: str,
        grid: tuple[int, ...],
        threads: int,
        arguments: tuple[Any, ...],
        on: Tensor,
        shared_bytes: int = 0,
    ) -> None:
        launched.append(Launch(source, expression, grid, threads, arguments, shared_bytes))

    types = {torch.float32: "float", torch.float16: "Half"}
    monkeypatch.setattr(torch.library, "impl", lambda *_: None)  # registers nothing for CUDA beyond the test
    fakes = {"rcnn_backend.engines.torch_kernels": SimpleNamespace(CPP_TYPES=types, launch=launch)}
    return lambda name: load_with_fakes(f"rcnn_backend.engines.{name}", fakes)
