"""Batch normalisation with an eps of 0, which torchvision's COCO_V1 weights use and torch refuses to run."""

from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d


class ZeroEpsBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d in eval mode, computed as torchvision's FrozenBatchNorm2d; its state dict stays the same."""

    forward = FrozenBatchNorm2d.forward


def allow_zero_eps(model: nn.Module) -> None:
    """Makes every BatchNorm2d of ``model`` with an eps of 0 runnable."""
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d and layer.eps == 0:
            layer.__class__ = ZeroEpsBatchNorm2d
