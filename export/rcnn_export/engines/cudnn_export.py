"""torch -> exported program for cuDNN: the networks with fused convolutions and our own kernels. No GPU is needed.

The server builds cuDNN's graphs for its own GPU when it loads the program.
"""

from dataclasses import replace
from pathlib import Path

import torch

from rcnn_export.engines.fuse import Fusions, fuse_convolutions
from rcnn_export.engines.fuse_kernels import use_feature_map_kernels, with_best_boxes
from rcnn_export.engines.onnx_export import export_program
from rcnn_export.engines.quantize_fused import Layers, quantize_convolutions
from rcnn_export.engines.stages import Stage


def export_fused(stage: Stage, int8: Layers | None = None) -> tuple[torch.export.ExportedProgram, Fusions]:
    """The stage as a program with fused convolutions, for every batch and every size of pictures.

    Args:
        int8: the layers that become INT8.

    Raises:
        ExportError: torch cannot trace it.
    """
    fused_stage = replace(stage, module=with_best_boxes(stage.module))
    traced = export_program(fused_stage).module(check_guards=False)
    # An INT8 convolution adds its residual itself, so that its result can be INT8.
    use_feature_map_kernels(traced.graph, with_additions=int8 is None)
    module, fusions = fuse_convolutions(traced)
    if int8:
        module, count = quantize_convolutions(module, int8)
        fusions = replace(fusions, int8=count)
    return export_program(replace(stage, module=module)), fusions


def write_program(stage: Stage, path: Path, int8: Layers | None = None) -> Fusions:
    """Writes the stage as ``path``, e.g. ``1/model.cudnn.pt2``.

    Args:
        int8: the layers that become INT8.

    Raises:
        ExportError: torch cannot trace it.
    """
    program, fusions = export_fused(stage, int8)
    torch.export.save(program, path)
    return fusions
