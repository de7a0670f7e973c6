"""FP16 as a property of the module: FP16 weights, and FP32 for the arithmetic that would lose too much precision.

Every export of the module, ONNX or a compiled package, has the same types. No engine builder
chooses them. The modules of ``split`` decode boxes and compute softmax and sigmoid in FP32 themselves.
"""

import copy

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class ChannelAffine(nn.Module):
    """``x * scale + shift`` for each channel: a batch normalisation in eval mode, [B, C, H, W]."""

    def __init__(self, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
        super().__init__()
        mean, variance, weight, bias = norm.running_mean, norm.running_var, norm.weight, norm.bias
        assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
        scale = torch.rsqrt(variance.double() + norm.eps)
        scale = scale if weight is None else scale * weight.double()
        shift = -mean.double() * scale
        shift = shift if bias is None else shift + bias.double()
        self.scale = nn.Parameter(scale.float()[:, None, None], requires_grad=False)
        self.shift = nn.Parameter(shift.float()[:, None, None], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


@torch.no_grad()
def to_half(module: nn.Module) -> nn.Module:
    """A copy with FP16 weights. Batch normalisation is reduced to a scale and a shift before rounding."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm2d, FrozenBatchNorm2d)):
                setattr(parent, name, ChannelAffine(child))
    return module.half()
