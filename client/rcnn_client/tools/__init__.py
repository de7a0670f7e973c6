"""The commands rcnn-detect, rcnn-eval, rcnn-perf and rcnn-ui; all but rcnn-detect need extras of the client."""

from __future__ import annotations

import importlib
import sys


def rcnn_detect() -> int:
    """Run rcnn-detect; returns its exit code."""
    return _run("detect")


def rcnn_eval() -> int:
    """Run rcnn-eval; returns its exit code."""
    return _run("eval")


def rcnn_perf() -> int:
    """Run rcnn-perf; returns its exit code."""
    return _run("perf")


def rcnn_ui() -> int:
    """Run rcnn-ui; returns its exit code."""
    return _run("ui", "rcnn_client.ui.")


def _run(name: str, modules: str = "") -> int:
    """Run a command's `main`; if a package of the extra `name` is missing, say how to install it.

    Args:
        modules: what the names of its modules start with, if they are not in this package.
    """
    modules = modules or f"{__name__}.{name}_"
    # --help, --version and wrong usage exit here, before the imports, which take a second
    importlib.import_module(f"{modules}arguments").parse(None)
    try:
        main = importlib.import_module(f"{modules}cli").main
    except ModuleNotFoundError as error:
        package = (error.name or "rcnn_client").partition(".")[0]
        if name == "detect" or package == "rcnn_client":
            raise
        print(
            f"rcnn-{name}: {package} is not installed; install what this command needs with "
            f"pip install 'rcnn-client[{name}]'",
            file=sys.stderr,
        )
        return 1
    code: int = main()
    return code
