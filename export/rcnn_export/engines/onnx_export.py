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

OPSET = 20


@torch.no_grad()
def export_program(stage: Stage) -> ExportedProgram:
    """The stage as an ATen graph, from which every engine is made."""
    with _quiet(), traceable_swin():
        return torch.export.export(stage.module, stage.example, dynamic_shapes=stage.dynamic_shapes)


def export_onnx(stage: Stage) -> onnx.ModelProto:
    """The stage as an ONNX graph with named axes, before ``clean_graph``."""
    with _quiet():
        program = torch.onnx.export(
            export_program(stage),
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
def _quiet() -> Iterator[None]:
    """Hides the exporter's progress notes and deprecation warnings, which the user can do nothing about."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
