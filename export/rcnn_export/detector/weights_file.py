"""Reads a weights file without running any code from it.

``torch.load(weights_only=True)`` builds tensors and plain Python values. Checkpoints also contain other objects:
arguments, configs, or the whole model. Each class that torch does not allow is replaced by a stand-in, which
stores the values that it is given and does nothing else.
"""

import contextlib
import math
import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from rcnn_export.detector.file_formats import SAFETENSORS, find_format
from rcnn_export.errors import ExportError

SAVE_PLAIN = "Save a plain state dict: torch.save(model.state_dict(), path)"
BATCH_NORM_EPS = "batch_norm_eps"  # in the metadata of a .safetensors file and in rcnn-train's checkpoint

_NOT_ALLOWED = re.compile(r"GLOBAL (\S+) was not an allowed global")
_IS_A_DICT = re.compile(r"Can only SETITEMS? for .* but got <class '([^']+)'>")
_IS_A_LIST = re.compile(r"Can only (?:append to|extend) lists, but got <class '([^']+)'>")
_BLOCKED = re.compile(r"unsupported GLOBAL (\S+) whose module")


class StandIn:
    """Replaces an object whose class torch does not allow; ``state`` has its attributes."""

    state: dict[str, Any]

    def __new__(cls, *_: Any, **__: Any) -> Any:
        stand_in = super().__new__(cls)
        stand_in.state = {}
        return stand_in

    def __init__(self, *_: Any, **__: Any) -> None:
        """Accepts any arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _StandInDict(StandIn):
    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()  # the unpickler sets items of exactly this class


class _StandInList(StandIn):
    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


def read_weights_file(path: Path) -> tuple[Any, float | None]:
    """The content of a file of ``torch.save`` or a ``.safetensors`` file, whatever its name.

    Returns:
        dicts, lists, plain values, ``StandIn`` and tensors on the CPU, nested as they were saved; and the eps
        of batch normalisation that the file records, or None if it records none.

    Raises:
        ExportError: there is no such file, or it cannot be read; the message says what it is instead.
    """
    try:
        if find_format(path) == SAFETENSORS:
            return _read_safetensors(path)
    except OSError as error:
        raise ExportError(f"cannot read the weights {path}: {error.strerror}") from error
    content = _read_torch(path)
    recorded = content.get(BATCH_NORM_EPS) if isinstance(content, dict) else None
    return content, _to_eps(path, recorded)


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], float | None]:
    try:
        with safe_open(path, "pt") as file:
            recorded = (file.metadata() or {}).get(BATCH_NORM_EPS)
        tensors = load_file(path)
    except (SafetensorError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise _cannot_read(path, f"this .safetensors file is cut short or damaged ({reason})") from error
    return tensors, _to_eps(path, recorded)


def _read_torch(path: Path) -> Any:
    stand_ins: dict[str, type[StandIn]] = {}
    # The classes in a file of the old format are not known before it is read, so each costs another attempt.
    with contextlib.suppress(Exception):
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
            stand_ins[name] = _stand_in(name, StandIn)
    while True:
        allowed: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not _add_stand_in(stand_ins, str(error)):
                raise _cannot_read(path, _why_not_unpickled(str(error))) from error
        except Exception as error:  # many kinds, for a file that is damaged
            if isinstance(error, MemoryError) or "allocate memory" in str(error):
                raise ExportError(f"cannot read the weights {path}: there is not enough memory") from error
            raise _cannot_read(path, "this file of torch.save is cut short or damaged") from error


def _add_stand_in(stand_ins: dict[str, type[StandIn]], error: str) -> bool:
    """Adds the stand-in whose absence made torch raise ``error``; False if no stand-in would help."""
    for pattern, base in ((_NOT_ALLOWED, StandIn), (_IS_A_DICT, _StandInDict), (_IS_A_LIST, _StandInList)):
        if match := pattern.search(error):
            name = match[1] if "." in match[1] else f"builtins.{match[1]}"
            if name in stand_ins and issubclass(stand_ins[name], base):
                return False
            stand_ins[name] = _stand_in(name, base)
            return True
    return False


def _stand_in(name: str, base: type[StandIn]) -> type[StandIn]:
    module, _, qualified = name.rpartition(".")
    return type(qualified, (base,), {"__module__": module})


def _why_not_unpickled(error: str) -> str:
    if match := _BLOCKED.search(error):
        return f"it tries to call {match[1]}, which no weights need. Do not trust it"
    if "DTensor" in error:
        return (
            "its tensors are shards of a distributed model (DTensor). Gather them before saving: "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True"
        )
    if "persistent_load of storage" in error:
        return "it is a whole pickled model in torch's old format, which only its own code can read"
    if "Unsupported operand" in error:
        return "this file of torch.save is damaged, or has another pickle_protocol than torch.save's default"
    return "this file of torch.save is damaged"


def _cannot_read(path: Path, reason: str) -> ExportError:
    return ExportError(f"cannot read the weights {path}: {reason}. {SAVE_PLAIN}")


def _to_eps(path: Path, recorded: Any) -> float | None:
    if recorded is None:
        return None
    try:
        eps = float(recorded)
    except (TypeError, ValueError):
        eps = math.nan
    if not 0 <= eps < math.inf:
        raise ExportError(f"{path} records {BATCH_NORM_EPS} {recorded!r}: expected a number, 0 or more")
    return eps
