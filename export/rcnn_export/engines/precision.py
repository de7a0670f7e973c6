"""The precisions of an export, each as one object."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rcnn_export.engines.fold_batch_norm import to_foldable
from rcnn_export.engines.half_precision import to_half


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from torchvision's FP32.

    Attributes:
        array: the largest difference in an array, as a fraction of the array's largest magnitude in the image.
        box_px: the largest difference of a box's edge, in pixels.
        box_of_side: the same for large boxes before clipping, as a fraction of the box's longer side; the larger of
            the two bounds applies. A box's side is exp(delta) times its anchor's side, so a delta within ``array``
            moves the edges of a very large box by more than ``box_px``.
        score: the largest difference of a score.
        mask: the largest difference of a mask's probability.
        matched_share: the smallest fraction of detections that must match end to end; explained ones do not count.
        explains: True: every unmatched row needs an explanation. False: rows are only counted, and
            ``matched_share`` of the rows of each stage must be matched.
    """

    array: float
    box_px: float
    box_of_side: float
    score: float
    mask: float
    matched_share: float
    explains: bool = True

    def boxes_px(self, boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
        """The bound in pixels for the edges of each of the unclipped boxes [..., 4]: [...]."""
        longer_side = (boxes[..., 2:] - boxes[..., :2]).max(axis=-1)
        bounds: npt.NDArray[np.floating] = np.maximum(self.box_px, self.box_of_side * longer_side)
        return bounds


@dataclass(frozen=True)
class Precision:
    """How the networks of an export compute. Boxes and scores are always computed in FP32.

    Attributes:
        name: in commands and manifests.
        dtype: of a network's input tensors and of the features that it returns.
        triton_type: the same type in a model configuration.
        prepare: makes a network of this precision from a torch module in FP32, which is not changed.
        bounds: how far the export's answers may be from torchvision's.
        is_quantized: whether the layers of the exported graph become INT8, which needs calibration pictures.
    """

    name: str
    dtype: torch.dtype
    triton_type: str
    prepare: Callable[[nn.Module], nn.Module]
    bounds: Bounds
    is_quantized: bool = False


def _as_it_is(network: nn.Module) -> nn.Module:
    return network


FP32 = Precision(
    "fp32",
    torch.float32,
    "TYPE_FP32",
    _as_it_is,
    # Sums of thousands of terms, added in another order. The differences of boxes and scores are far too small to
    # be visible or to change mAP.
    Bounds(array=1e-5, box_px=0.05, box_of_side=1e-5, score=1e-4, mask=1e-3, matched_share=0.99),
)
FP16 = Precision(
    "fp16",
    torch.float16,
    "TYPE_FP16",
    to_half,
    # Each number has 11 bits. In ONNX Runtime the sample with its trained weights stays within a fifth of these
    # bounds, and each network of torchvision's models with random weights, run alone, within half of them. End to
    # end their nearly tied scores fall on either side of cuts and thresholds, so rows are counted, not explained.
    Bounds(
        array=2e-2, box_px=2.0, box_of_side=1e-2, score=0.05, mask=2e-2, matched_share=0.9, explains=False
    ),
)
INT8 = Precision(
    "int8",
    torch.float32,  # around the quantised layers
    "TYPE_FP32",
    to_foldable,
    # Each number has 8 bits. In ONNX Runtime the samples reach nine tenths of these bounds. A lost scale or a wrong
    # layer exceeds them by far. AP shows what INT8 costs.
    Bounds(array=0.2, box_px=16.0, box_of_side=0.1, score=0.3, mask=0.5, matched_share=0.8, explains=False),
    is_quantized=True,
)
INT8_IN_FP16 = dataclasses.replace(  # of --engine cudnn
    INT8, dtype=FP16.dtype, triton_type=FP16.triton_type, prepare=FP16.prepare
)
PRECISIONS = {precision.name: precision for precision in (FP32, FP16, INT8)}
