"""The commands ``rcnn-export``, ``rcnn-train`` and ``rcnn-verify``: arguments, progress, messages, exit codes.

They call the other folders, and nothing may import from here. Computations belong in those folders. ``--help``,
``--version`` and wrong usage end the program before PyTorch is imported, which takes seconds.
"""

import importlib
import sys

from rcnn_export.errors import INTERRUPTED


def rcnn_export() -> int:
    """Runs rcnn-export; returns its exit code."""
    return _run("export")


def rcnn_train() -> int:
    """Runs rcnn-train; returns its exit code."""
    return _run("train")


def rcnn_verify() -> int:
    """Runs rcnn-verify; returns its exit code."""
    return _run("verify")


def _run(name: str) -> int:
    importlib.import_module(f"{__name__}.{name}_arguments").parse(None)
    try:
        command = importlib.import_module(f"{__name__}.{name}")
    except KeyboardInterrupt:
        print(f"rcnn-{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    code: int = command.main()
    return code
