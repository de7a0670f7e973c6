"""Loads modules that need CuPy on a machine without CuPy."""

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def load_with_fakes(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, Any]], ModuleType]:
    """Loads a copy of a module in which the given fakes, by name, replace imported modules."""

    def load(name: str, fakes: dict[str, Any]) -> ModuleType:
        for fake in fakes:
            monkeypatch.setitem(sys.modules, fake, fakes[fake])
        spec = importlib.util.find_spec(name)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
