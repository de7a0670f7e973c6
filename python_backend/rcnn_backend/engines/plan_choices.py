"""Stores which plan was the fastest for each convolution, also on disk if the host has a cache folder."""

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path

import torch

from rcnn_backend.engines.convolution import Convolution

FOLDER = "rcnn-backend"


class PlanChoices:
    """The names of the chosen plans, which are read from a file and written to it.

    Convolutions share a choice if they differ only in the number of output pixels, and if these numbers have the same
    number of bits. So pictures of a similar size need no new timing, and batches of 1 and of 8 have different plans.

    Args:
        path: a JSON file; with None the choices are kept in this process only. A file that cannot be read counts as
            empty, and one that cannot be written is left unchanged.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._names = self._read()
        self._has_new = False

    def get(self, convolution: Convolution) -> str | None:
        """The name of the plan for such a convolution; None if none was chosen."""
        return self._names.get(_key(convolution))

    def put(self, convolution: Convolution, name: str) -> None:
        """Remembers the plan of that name for such convolutions."""
        self._names[_key(convolution)] = name
        self._has_new = True

    def save(self) -> None:
        """Adds the new choices to the file if this process may write it."""
        if not self._has_new or self._path is None:
            return
        self._has_new = False
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self._read() | self._names, indent=1, sort_keys=True)
            handle, written = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}-")
            with os.fdopen(handle, "w") as file:
                file.write(text)
            Path(written).replace(self._path)  # atomic, because other processes read the file

    def _read(self) -> dict[str, str]:
        if self._path is None:
            return {}
        try:
            names = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return names if isinstance(names, dict) else {}


def cache_path(gpu: str, cudnn_version: int) -> Path | None:
    """The file for a GPU model and a version of cuDNN; None on a host without a home folder.

    It is in ``$XDG_CACHE_HOME/rcnn-backend``, or in ``~/.cache/rcnn-backend`` if that variable is not set.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and no entry for the user in the password database
        return None
    kind = re.sub(r"[^A-Za-z0-9]+", "-", gpu)
    return cache / FOLDER / f"convolutions-{kind}-cudnn-{cudnn_version}.json"


def _key(convolution: Convolution) -> str:
    batch, _, height, width = convolution.output
    shape = "x".join(map(str, convolution.weight))
    geometry = (*convolution.stride, *convolution.padding, *convolution.dilation, convolution.groups)
    parts = (convolution.has_bias, convolution.has_residual, convolution.relu)
    with_what = [name for name, has in zip(("bias", "residual", "relu"), parts, strict=True) if has]
    types = (("residual", convolution.residual_dtype), ("result", convolution.result_dtype))
    with_what += [f"{name}={_name(dtype)}" for name, dtype in types if dtype]
    pixels = (batch * height * width).bit_length()
    dtype = _name(convolution.dtype)
    return " ".join([dtype, shape, ",".join(map(str, geometry)), *with_what, f"pixels<2^{pixels}"])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
