"""The engines' decoded outputs lead to torchvision's proposals and detections, for any outputs of the networks."""

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from rcnn_backend.operators.detections import postprocess_detections
from rcnn_backend.operators.proposals import filter_proposals
from rcnn_export.detector.parameters import detection_parameters, proposal_parameters
from rcnn_export.detector.split import HeaderModule, RpnModule
from rcnn_export.digits.detector import STAGE_CHANNELS, digits_detector
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from .cases import BATCH, CASES, cases
from .reference import exact_batched_nms
from .strategies import FINITE, LOGITS, array_of, boxes

DELTAS = np.concatenate([np.arange(248) % 31 / 8 - 2, [0.1, 0.3, 4, 5, 1e3, 1e30, -1e30, np.nan]])
STRIDES = (4, 8, 16, 32)
ROUNDING = {"rtol": 1e-6, "atol": 1e-4}  # of decoded boxes: vectorised and scalar exp() round differently


class Given(nn.Module):
    """A network that returns given outputs."""

    answer: Any = None

    def forward(self, *inputs: Any) -> Any:
        return self.answer


MODEL = digits_detector().eval()
RPN, HEADER = RpnModule(MODEL), HeaderModule(MODEL)
PROPOSALS, DETECTIONS = proposal_parameters(MODEL), detection_parameters(MODEL)
HEAD, BACKBONE, PREDICTOR = Given(), Given(), Given()
MODEL.rpn.head, RPN.head, RPN.backbone = HEAD, HEAD, BACKBONE
HEADER.box_head, HEADER.box_predictor = nn.Identity(), PREDICTOR


@st.composite
def rpn_outputs(draw: st.DrawFn) -> dict[str, Any]:
    """No two logits are equal: the sigmoids of equal ones may differ in the last bit, which would decide their order."""
    height, width = (32 * draw(st.integers(1, 2)) for _ in range(2))
    grids = [(height // stride, width // stride) for stride in STRIDES]
    return {
        "size_hw": (height, width),
        "objectness": [
            draw(array_of(LOGITS, 1, 2, *grid)) + distinct(2 * math.prod(grid), level).reshape(1, 2, *grid)
            for level, grid in enumerate(grids)
        ],
        "deltas": [draw(array_of(DELTAS.astype(np.float32), 1, 8, *grid)) for grid in grids],
    }


def distinct(count: int, level: int) -> np.ndarray:
    """Small numbers [count], all different, also from those of other levels, and smaller than the steps of LOGITS."""
    return ((4 * np.arange(count) + level) * 2e-5).astype(np.float32)


@cases(CASES["rpn"])
@given(rpn_outputs())
@torch.no_grad()
def test_rpn(drawn: dict[str, Any]) -> None:
    """Anchors, decoding, top-k, clipping and NMS."""
    size_hw = drawn["size_hw"]
    HEAD.answer = [[torch.from_numpy(level) for level in drawn[name]] for name in ("objectness", "deltas")]
    features = [torch.zeros(1, STAGE_CHANNELS[0], *level.shape[2:]) for level in HEAD.answer[0]]
    BACKBONE.answer = OrderedDict((str(level), feature) for level, feature in enumerate(features))
    blank = torch.zeros(1, 3, *size_hw)
    with exact_batched_nms():
        (expected,), _ = MODEL.rpn(ImageList(blank, [size_hw]), BACKBONE.answer)
    rpn_boxes = RPN(blank)[0][0].numpy()
    found = filter_proposals(rpn_boxes, np.array(size_hw, np.float32), PROPOSALS)
    np.testing.assert_allclose(found, expected.numpy(), **ROUNDING)


@st.composite
def header_outputs(draw: st.DrawFn) -> dict[str, np.ndarray]:
    classes = draw(st.integers(2, 4))
    return {
        "logits": draw(array_of(LOGITS, BATCH, classes)),
        "regression": draw(array_of(DELTAS.astype(np.float32), BATCH, 4 * classes)),
        "proposals": draw(boxes(BATCH, table=FINITE)),
    }


@cases(CASES["header"], a_call=BATCH)
@given(header_outputs())
@torch.no_grad()
def test_header(drawn: dict[str, np.ndarray]) -> None:
    """Softmax, decoding of each class, clipping, threshold and NMS."""
    logits, regression, proposals = (torch.from_numpy(array) for array in drawn.values())
    PREDICTOR.answer = logits, regression
    size_hw = 60, 80
    with exact_batched_nms():
        expected: tuple[list[Tensor], ...] = MODEL.roi_heads.postprocess_detections(
            logits, regression, [proposals], [size_hw]
        )
    scores, class_boxes, _ = HEADER(torch.zeros(1, len(proposals), 1, 1, 1), proposals[None])
    found = postprocess_detections(
        scores[0].numpy(), class_boxes[0].numpy(), np.array(size_hw, np.float32), DETECTIONS
    )
    for ours, (theirs,) in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), **ROUNDING)
