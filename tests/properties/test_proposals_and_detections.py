"""Decoding, clipping, thresholds, top-k and NMS are torchvision's, for any boxes, scores, sizes and thresholds."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from rcnn_backend.contract.parameters import DetectionParameters, PoolParameters, ProposalParameters
from rcnn_backend.devices import Cpu, Device
from rcnn_backend.operators.detections import detect
from rcnn_backend.operators.proposals import propose
from torchvision.models.detection.transform import resize_boxes

from . import reference
from .cases import BATCH, CASES, cases
from .strategies import LOGITS, SCORES, array_of, boxes, sizes_hw, thresholds

POOLING = PoolParameters([16], 224, 4, [1, 1], 1)
GPU_ROUNDING = 1e-6  # of boxes scaled back to the picture as sent
MIN_BOX_SIZES = st.sampled_from([1e-3, 1e-2, 0.0, 1.0])


@st.composite
def anchors(draw: st.DrawFn) -> dict[str, Any]:
    """The boxes that a RegionProposalNetwork filters, for a batch."""
    level_sizes = draw(st.lists(st.integers(1, 24), min_size=1, max_size=3))
    shape = BATCH, sum(level_sizes)
    return {
        "logits": draw(array_of(LOGITS, *shape)),
        "boxes": draw(boxes(*shape)),
        "sizes_hw": [draw(sizes_hw) for _ in range(BATCH)],
        "level_sizes": level_sizes,
        "pre_nms_top_n": draw(st.integers(1, 30)),
        "parameters": ProposalParameters(
            draw(thresholds), draw(thresholds), draw(MIN_BOX_SIZES), [draw(st.integers(1, 40))], 5000
        ),
    }


def check_proposals(
    device: Device,
    logits: np.ndarray,
    boxes: np.ndarray,
    sizes_hw: list[tuple[int, int]],
    level_sizes: list[int],
    pre_nms_top_n: int,
    parameters: ProposalParameters,
) -> None:
    all_logits, all_boxes = reference.tensor(logits, device), reference.tensor(boxes, device)
    top = reference.top_anchors(all_logits, level_sizes, pre_nms_top_n)
    expected = reference.filter_proposals(all_boxes, all_logits, top, sizes_hw, level_sizes, parameters)

    levels = torch.from_numpy(np.repeat(np.arange(len(level_sizes)), level_sizes)).to(top.device)
    scores = torch.sigmoid(all_logits.gather(1, top))
    kept_boxes = all_boxes.gather(1, top[:, :, None].expand(-1, -1, 4))
    rpn_boxes = torch.cat([scores[:, :, None], kept_boxes, levels[top][:, :, None]], dim=2).cpu().numpy()
    with device.active():
        features = [device.upload(np.ones((len(boxes), 1, 2, 2), np.float32))]
        sizes = np.array([[*size, *size] for size in sizes_hw], np.float32)
        found = propose(device.upload(rpn_boxes), features, device.upload(sizes), parameters, POOLING)
        padded, counts = device.download([found.boxes, found.num_proposals])
    assert padded.shape == (len(boxes), parameters.padded_counts[-1], 4)
    for proposals, count, theirs in zip(padded, counts.ravel(), expected, strict=True):
        np.testing.assert_array_equal(proposals[:count], theirs)
        assert not proposals[count:].any()


@cases(CASES["proposals"], a_call=BATCH)
@given(anchors())
def test_proposals(drawn: dict[str, Any]) -> None:
    check_proposals(Cpu(), **drawn)


@st.composite
def classified(draw: st.DrawFn) -> dict[str, Any]:
    """The boxes and scores that RoIHeads postprocesses, for a batch; each image has its own thresholds."""
    rois, classes, most = draw(st.integers(1, 16)), draw(st.integers(1, 4)), draw(st.integers(1, 40))
    shape = BATCH, rois, classes
    return {
        "scores": draw(array_of(SCORES, *shape)),
        "boxes": draw(boxes(*shape)),
        "counts": [draw(st.integers(0, rois)) for _ in range(BATCH)],
        "sizes_hw": [draw(st.tuples(sizes_hw, sizes_hw)) for _ in range(BATCH)],
        "parameters": [
            DetectionParameters(draw(thresholds), draw(thresholds), 1e-2, draw(st.integers(1, most)))
            for _ in range(BATCH)
        ],
        "most": most,
    }


def check_detections(
    device: Device,
    scores: np.ndarray,
    boxes: np.ndarray,
    counts: list[int],
    sizes_hw: list[tuple[tuple[int, int], tuple[int, int]]],
    parameters: list[DetectionParameters],
    most: int,
) -> None:
    numbers = np.array(counts, np.int32)[:, None]
    sizes = np.array([[*resized, *original] for resized, original in sizes_hw], np.float32)
    with device.active():
        inputs = [device.upload(array) for array in (scores, boxes, numbers, sizes)]
        found = detect(*inputs, parameters, most)
        *padded, num_detections, resized_boxes = device.download(list(found[:5]))
    assert padded[0].shape == (len(scores), most, 4)
    for image, (count, limits) in enumerate(zip(counts, parameters, strict=True)):
        size_hw, original_hw = sizes_hw[image]
        own_boxes, own_scores, labels = reference.postprocess_detections(
            scores[image, :count], boxes[image, :count], size_hw, limits, device
        )
        in_picture = resize_boxes(torch.from_numpy(own_boxes), size_hw, original_hw).numpy()
        expected = in_picture, own_scores, labels, own_boxes
        detections = num_detections[image, 0]
        for ours, theirs in zip((*padded, resized_boxes), expected, strict=True):
            np.testing.assert_allclose(ours[image, :detections], theirs, rtol=GPU_ROUNDING * device.is_gpu)
            assert not ours[image, detections:].any()


@cases(CASES["detections"], a_call=BATCH)
@given(classified())
def test_detections(drawn: dict[str, Any]) -> None:
    check_detections(Cpu(), **drawn)
