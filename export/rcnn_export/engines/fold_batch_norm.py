"""Batch normalisation in the form that the ONNX exporter folds into the convolution before it."""

import copy

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d


@torch.no_grad()
def to_foldable(module: nn.Module) -> nn.Module:
    """A copy with ``BatchNorm2d`` in place of ``FrozenBatchNorm2d``: the same in eval mode.

    A quantised convolution must be followed by nothing but its activation. Of a frozen batch normalisation the exporter
    makes a multiplication and an addition, which stay in the graph.
    """
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenBatchNorm2d):
                norm = nn.BatchNorm2d(len(child.weight), eps=child.eps)
                norm.load_state_dict(child.state_dict(), strict=False)  # without the count of batches
                setattr(parent, name, norm.eval())
    return module
