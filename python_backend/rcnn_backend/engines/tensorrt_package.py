"""The installed TensorRT, from any of its packages. No other module imports these packages.

    from rcnn_backend.engines.tensorrt_package import trt

``tensorrt`` builds and runs plans; ``tensorrt_lean`` is only its runtime. ``tensorrt_rtx`` has the same API and
builds without a GPU. Its plans have their own format and run on GeForce and RTX GPUs.
"""

import importlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rcnn_backend.contract.manifest import InstalledTensorRT
from rcnn_backend.errors import RepositoryError

__all__ = ["ErrorLog", "find_installed", "set_target", "trt"]

PACKAGES = ("tensorrt", "tensorrt_lean", "tensorrt_rtx")


def _import_tensorrt() -> Any:
    for package in PACKAGES:
        try:
            return importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
    raise RepositoryError(
        f"no TensorRT is installed for this Python (one of {', '.join(PACKAGES)}): run `pip install tensorrt-cu13` "
        "in the version of the server that runs the plans"
    )


if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = _import_tensorrt()


class ErrorLog(trt.ILogger):
    """TensorRT's log: keeps the errors, forwards the warnings and drops the rest."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors.append(msg)
        elif severity == trt.ILogger.Severity.WARNING:
            logging.getLogger("tensorrt").warning(msg)

    def __str__(self) -> str:
        return "; ".join(self.errors) or "it gave no reason"


def find_installed() -> InstalledTensorRT:
    """The installed package and its version; ``tensorrt_lean`` counts as ``tensorrt``, because it runs the same plans."""
    return InstalledTensorRT(trt.__name__.removesuffix("_lean"), trt.__version__)


def set_target(config: Any, compute_capabilities: Sequence[str]) -> None:
    """Makes a builder's config build for other GPUs than the one in this machine. Only ``tensorrt_rtx`` can do this.

    Raises:
        RepositoryError: the installed TensorRT cannot build for other GPUs, or not for one of these.
    """
    known: Any = getattr(trt, "ComputeCapability", None)
    if known is None:
        raise RepositoryError(
            f"{find_installed()} builds only for the GPU that it runs on: build there, without --compute-capability"
        )
    config.num_compute_capabilities = len(compute_capabilities)
    for index, capability in enumerate(compute_capabilities):
        member = getattr(known, f"SM{capability.replace('.', '')}", None)
        if member is None:
            names = sorted(name for name in known.__members__ if name.startswith("SM"))
            raise RepositoryError(
                f"{find_installed()} cannot build for compute capability {capability}: it knows {', '.join(names)}"
            )
        config.set_compute_capability(member, index)
