"""Calls a user's function that returns a detector, and removes the detector's wrappers."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from rcnn_export.errors import ExportError

WRAPPERS = (nn.DataParallel, DistributedDataParallel, OptimizedModule)
OPTIONS = {  # the options that set each parameter
    "num_classes": "--num-classes or --labels",
    "num_keypoints": "--keypoints",
}
ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def call_function(path: str, numbers: Mapping[str, int], seed: int) -> object:
    """The return value of the function ``path``, ``package.module:function``; a module is unwrapped, FP32 and on the CPU.

    Args:
        numbers: ``num_classes`` and ``num_keypoints``, if they are known. Each is passed to the function if it has a
            parameter of that name; num_classes is also passed if the function takes ``**kwargs``.
        seed: for torch's random numbers in the call; it is set after the import.

    Raises:
        ExportError: it cannot be imported, is not a function, needs other arguments, or raises.
    """
    function = _import(path)
    if isinstance(function, nn.Module) or not callable(function):
        raise ExportError(
            f"{path} is not a function but a {type(function).__name__}: give a function that returns a FasterRCNN"
        )
    arguments = _arguments(path, function, numbers)
    torch.manual_seed(seed)
    try:
        return _unwrap(function(**arguments))
    except ExportError:
        raise
    except (Exception, SystemExit) as error:
        raise ExportError(f"{path} raised {_first_line(error)}") from error


def _import(path: str) -> Any:
    module_name, _, function_name = path.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does, for modules in the current folder
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:  # a module may do anything when it is imported
        reason = str(error) if isinstance(error, (ImportError, AttributeError)) else _first_line(error)
        raise ExportError(
            f"cannot import {path}: {reason}. Expected package.module:function, importable from here"
        ) from error


def _arguments(path: str, function: Any, numbers: Mapping[str, int]) -> dict[str, int]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a function written in C
        return {}
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in ANY_NUMBER
    ]
    if others := [name for name in needed if name not in OPTIONS]:
        raise ExportError(
            f"{path} needs the arguments {', '.join(others)}, but it is called with {' and '.join(OPTIONS)} alone: "
            "give the others defaults"
        )
    for name in needed:
        if name not in numbers:
            raise ExportError(f"{path} needs {name}: give {OPTIONS[name]}, or give the parameter a default")
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    taken = {*parameters, "num_classes"} if takes_any else parameters  # not every detector has keypoints
    return {name: number for name, number in numbers.items() if name in taken}


def _unwrap(detector: object) -> object:
    """The module without DataParallel and torch.compile, also around its submodules, in FP32, on the CPU."""
    if isinstance(detector, WRAPPERS):
        return _unwrap(detector._orig_mod if isinstance(detector, OptimizedModule) else detector.module)
    if isinstance(detector, nn.Module):
        for part in detector.modules():
            part._compiled_call_impl = None  # set by Module.compile()
            for name, child in part.named_children():
                if isinstance(child, WRAPPERS):
                    setattr(part, name, _unwrap(child))
        detector.float().cpu()
    return detector


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
