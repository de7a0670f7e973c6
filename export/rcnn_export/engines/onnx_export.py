"""torch -> ONNX: the networks as graphs with dynamic batch, height and width."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch.export import ExportedProgram

from rcnn_export.engines.stages import Stage
from rcnn_export.engines.swin import traceable_swin
from rcnn_export.errors import ExportError

OPSET = 20


@torch.no_grad()
def export_program(stage: Stage) -> ExportedProgram:
    """The stage as an ATen graph, from which every engine is made.

    Raises:
        ExportError: torch cannot trace it.
    """
    with _quiet(), traceable_swin(), _refusal(f"trace the {stage.name} for pictures of every size"):
        return torch.export.export(stage.module, stage.example, dynamic_shapes=stage.dynamic_shapes)


def export_onnx(stage: Stage) -> onnx.ModelProto:
    """The stage as an ONNX graph with named axes, before ``clean_graph``.

    Raises:
        ExportError: torch cannot trace it, or cannot translate one of its operators to ONNX.
    """
    traced = export_program(stage)
    with _quiet(), _refusal(f"write the {stage.name} as ONNX"):
        program = torch.onnx.export(
            traced,
            input_names=stage.inputs,
            output_names=stage.outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.graph.name = stage.name
    for value in (*model.graph.input, *model.graph.output):
        for dim, axis in zip(value.type.tensor_type.shape.dim, stage.axes[value.name], strict=True):
            if not dim.HasField("dim_value"):
                dim.dim_param = str(axis)
    return model


@contextlib.contextmanager
def _refusal(deed: str) -> Iterator[None]:
    """Turns an exporter's exceptions, which are of many kinds, into one error with the exception's first line."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        raise ExportError(
            f"torch cannot {deed}: {type(error).__name__}: {lines[0]}. Check the detector's own modules for code that "
            "depends on the values or on the size of a picture"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's progress messages and deprecation warnings, because the user cannot act on them."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
