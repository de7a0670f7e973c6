"""torch -> AOTInductor package: the RPN and the header compiled for this machine's GPU, or for its CPU.

A package runs with the same version of PyTorch, on the kind of GPU it was compiled on, which the
manifest in the same folder names. No TensorRT is needed.
"""

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rcnn_backend.engines.aoti import describe_target
from torch import Tensor
from torch.export import ExportedProgram

from rcnn_export.engines.onnx_export import export_program
from rcnn_export.engines.stages import Stage
from rcnn_export.errors import ExportError

INDUCTOR_OPTIONS = {"freezing": True}  # folds constants, such as batch normalisation into the convolutions


def compile_package(stage: Stage, path: Path) -> str:
    """Writes the stage as ``path``, e.g. ``1/model.pt2``; takes a minute or two.

    Returns:
        The target it was compiled for, e.g. ``cuda sm_90``.

    Raises:
        ExportError: the compiler failed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, example = stage.module, stage.example
    if device.type == "cuda":
        module = copy.deepcopy(module).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        example = tuple(
            torch.zeros(shape, dtype=tensor.dtype, device=device)
            for shape, tensor in zip(stage.typical, example, strict=True)
        )
    try:
        with _quiet(), torch.no_grad():
            program = upsample_by_integers(export_program(replace(stage, module=module, example=example)))
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=INDUCTOR_OPTIONS
            )
    except ExportError:
        raise
    except Exception as error:  # many kinds, also from the compilers
        raise ExportError(
            f"AOTInductor cannot compile the {stage.name}: {type(error).__name__}: {str(error)[:2000]}. "
            "It needs a C++ compiler (`apt install g++`; CXX chooses one)"
        ) from error
    return describe_target(device)


def upsample_by_integers(program: ExportedProgram) -> ExportedProgram:
    """Replaces nearest upsampling, which the FPN uses, by one with integer source indices.

    Inductor's own version multiplies by the ratio of the two sizes, and a GPU's division is approximate. With a ratio one
    rounding step below 1/2, every second row and column is taken from the neighbouring pixel.
    """
    exact: ExportedProgram = program.run_decompositions(
        {torch.ops.aten.upsample_nearest2d.vec: _upsample_nearest}
    )
    return exact


def _upsample_nearest(x: Tensor, size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> Any:
    if scale_factors is not None:
        if not all(factor.is_integer() for factor in scale_factors):
            return NotImplemented  # torch's own version is used
        size = [old * int(factor) for old, factor in zip(x.shape[-2:], scale_factors, strict=True)]
    assert size is not None
    rows, columns = (
        torch.arange(new, device=x.device) * old // new for old, new in zip(x.shape[-2:], size, strict=True)
    )
    upsampled = torch.ops.aten._unsafe_index(x, [None, None, rows[:, None], columns])
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return upsampled.contiguous(
        memory_format=torch.channels_last if is_channels_last else torch.contiguous_format
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides torch's warnings about its own code, because the user cannot act on them."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
