"""Batch normalisation in the one form that the ONNX exporter folds into the convolution before it."""

import copy

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from rcnn_export.engines.half_precision import ChannelAffine

NO_EPS = 1e-12  # added to a variance of 1 in FP32 it is nothing, and torch wants more than 0


@torch.no_grad()
def to_foldable(module: nn.Module) -> nn.Module:
    """A copy whose batch normalisation is ``BatchNorm2d``, frozen or with an eps of 0 or not.

    A layer is quantised with nothing but its activation behind it. Of the other forms the exporter makes a
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
