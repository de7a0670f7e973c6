"""INT8 ranges and tensors for ``convolutions.py``, which has no pictures for a calibration."""

from collections import defaultdict

import torch
from rcnn_backend.engines.convolution import Convolution
from rcnn_backend.engines.convolution_int8 import convolve_int8
from rcnn_backend.engines.convolution_plans import Plan, Tensors
from torch import nn

SPREAD = 40  # standard deviation of the results
RANDOM_INT8 = 74  # standard deviation of random integers from -128 to 127


def observe_ranges(module: nn.Module, pictures: torch.Tensor) -> dict[str, list[float]]:
    """The largest input magnitude of each convolution in a network, for each time that it runs."""
    ranges: dict[str, list[float]] = defaultdict(list)

    def observe(name: str, x: torch.Tensor) -> None:
        ranges[name].append(x.abs().max().item())

    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, given, name=name: observe(name, given[0]))
    with torch.inference_mode():
        module(pictures)
    return dict(ranges)


def random_int8_tensors(convolution: Convolution, device: torch.device) -> Tensors:
    """Random arguments for the operator, whose results are spread over the INT8 range."""

    def whole(shape: tuple[int, ...]) -> torch.Tensor:
        numbers = torch.randint(-128, 128, shape, device=device, dtype=torch.int8)
        return numbers.contiguous(memory_format=torch.channels_last)

    kernels, terms = convolution.weight[0], torch.Size(convolution.weight[1:]).numel()
    residual = whole(convolution.output) if convolution.has_residual else None
    return (
        whole(convolution.x),
        whole(convolution.weight),
        torch.randn(kernels, device=device) if convolution.has_bias else None,
        None if residual is None else residual.to(convolution.residual_dtype or torch.int8),
        torch.full((kernels,), SPREAD / (RANDOM_INT8**2 * terms**0.5), device=device),
        None if residual is None else torch.full((kernels,), 0.5, device=device),
    )


def int8_error_of(convolution: Convolution, tensors: Tensors, plan: Plan) -> float:
    """The largest difference from exact sums in the first picture, as a share of the largest magnitude."""
    x, weight, bias, residual, scale, residual_scale = tensors
    assert x is not None
    assert weight is not None
    assert scale is not None
    first = x[:1], weight, bias, None if residual is None else residual[:1], scale, residual_scale
    result_dtype = convolution.result_dtype or torch.int8
    expected = convolve_int8(*first, *convolution.geometry, convolution.relu, result_dtype).float()
    return ((plan(*tensors)[:1].float() - expected).abs().max() / expected.abs().max()).item()
