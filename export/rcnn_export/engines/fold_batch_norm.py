"""Batch normalisation in the one form that the ONNX exporter folds into the convolution before it."""

import copy

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from rcnn_export.engines.half_precision import ChannelAffine

NO_EPS = 1e-12  # torch requires more than 0; added to a variance of 1 in FP32 it has no effect


@torch.no_grad()
def to_foldable(module: nn.Module) -> nn.Module:
    """A copy in which every batch normalisation, also one that is frozen or has an eps of 0, is a ``BatchNorm2d``.

    A layer can only be quantised if just its activation follows it. The exporter turns the other forms into a
    multiplication and an addition, which stay in the graph.
    """
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm2d, FrozenBatchNorm2d)):
                affine = ChannelAffine(child)
                norm = nn.BatchNorm2d(affine.scale.numel(), eps=NO_EPS)
                norm.weight, norm.bias = (
                    nn.Parameter(affine.scale.flatten()),
                    nn.Parameter(affine.shift.flatten()),
                )
                setattr(parent, name, norm.eval())
    return module
