"""The commands rcnn-eval and rcnn-perf; the packages they need are extras of the client."""

from __future__ import annotations

import importlib
import sys


def rcnn_eval() -> int:
    """Run rcnn-eval; returns its exit code."""
    return _run("eval", "rcnn_client.tools.eval_cli")


def rcnn_perf() -> int:
    """Run rcnn-perf; returns its exit code."""
    return _run("perf", "rcnn_client.tools.perf_cli")


def _run(name: str, module: str) -> int:
    """Run the `main` of a module; if a package of the extra `name` is missing, say how to install it."""
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        package = (error.name or "rcnn_client").partition(".")[0]
        if package == "rcnn_client":
            raise
        print(
            f"rcnn-{name}: {package} is not installed; install what this command needs with "
            f"pip install 'rcnn-client[{name}]'",
            file=sys.stderr,
        )
        return 1
    code: int = main()
    return code
