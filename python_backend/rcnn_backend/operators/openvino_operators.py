"""OpenVINO's operators on the CPU as functions: small networks that are compiled once and cached."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from rcnn_backend.operators.openvino_runtime import compile_network, openvino, opset, run_network

Float = npt.NDArray[np.float32]
ANY = -1  # a dimension that may differ in each run


def non_max_suppression(boxes: Float, scores: Float, iou_threshold: float) -> npt.NDArray[np.int32]:
    """NonMaxSuppression of G groups of n boxes.

    Args:
        boxes: [G, n, 4].
        scores: [G, n]; -inf where there is no box.

    Returns:
        [k, 2], the group and the index of each kept box, in any order.

    The suppression is greedy: if the IoU of two boxes exceeds the threshold, the one with the lower score is removed. A
    box that has been removed suppresses nothing. Among equal scores, the lower index comes first.
    """
    most = np.array(boxes.shape[1], np.int32)
    inputs = [boxes, scores[:, None], most, _smallest_above(iou_threshold)]
    (selected,) = run_network(_nms_network(), inputs)  # [k, 3]: group, class, box
    return selected[:, [0, 2]]


def roi_align(
    features: Sequence[Float],
    boxes: Sequence[Float],
    rows: npt.NDArray[np.int32],
    strides: Sequence[int],
    sampling_ratio: int,
    pooled: Float,
) -> None:
    """ROIAlign of one image's pyramid with torchvision's ``aligned=False``, written into ``pooled``.

    Args:
        features: L levels [1, C, h, w].
        boxes: for each level the boxes pooled from it, [n, 4] in pixels; N in all.
        rows: for each row of ``pooled`` the index of its box among all N, level after level; N for a row of zeros.
        strides: the size of a cell in pixels, for each level.
        pooled: [R, C, height, width].
    """
    output_size_hw = pooled.shape[2], pooled.shape[3]
    network = _roi_align_network(tuple(strides), pooled.shape[1], output_size_hw, max(sampling_ratio, 0))
    run_network(network, [*features, *boxes, rows], pooled)


@cache
def _nms_network() -> openvino.CompiledModel:
    boxes = opset.parameter([ANY, ANY, 4], np.float32)
    scores = opset.parameter([ANY, 1, ANY], np.float32)
    most = opset.parameter([], np.int32)
    iou_threshold = opset.parameter([], np.float32)
    found = opset.non_max_suppression(
        boxes,
        scores,
        most,
        iou_threshold,
        score_threshold=opset.constant(np.float32(-np.inf)),
        sort_result_descending=False,
        output_type="i32",
    )
    return compile_network(openvino.Model([found.output(0)], [boxes, scores, most, iou_threshold]))


@cache
def _roi_align_network(
    strides: tuple[int, ...], channels: int, output_size_hw: tuple[int, int], sampling_ratio: int
) -> openvino.CompiledModel:
    features = [opset.parameter([1, channels, ANY, ANY], np.float32) for _ in strides]
    boxes = [opset.parameter([ANY, 4], np.float32) for _ in strides]
    rows = opset.parameter([ANY], np.int32)
    pooled = [
        opset.roi_align(
            _channels_last(feature, channels),
            level_boxes,
            _zero_for_each(level_boxes),
            *output_size_hw,
            sampling_ratio,
            1 / stride,
            "avg",
            "asymmetric",
        )
        for feature, level_boxes, stride in zip(features, boxes, strides, strict=True)
    ]
    zeros = opset.constant(np.zeros((1, channels, *output_size_hw), np.float32))
    gathered = opset.gather(opset.concat([*pooled, zeros], 0), rows, opset.constant(0))
    return compile_network(openvino.Model([gathered], [*features, *boxes, rows]))


def _channels_last(feature: openvino.Node, channels: int) -> openvino.Node:
    """A convolution that changes no value. OpenVINO stores its output in channels-last order, from which it pools more
    than ten times as fast.
    """
    ones = opset.constant(np.ones((channels, 1, 1, 1, 1), np.float32))
    return opset.group_convolution(feature, ones, [1, 1], [0, 0], [0, 0], [1, 1])


def _zero_for_each(boxes: openvino.Node) -> openvino.Node:
    """For boxes [n, 4] the index of each box's image [n], which is 0, because there is only one image."""
    count = opset.gather(opset.shape_of(boxes), opset.constant([0]), opset.constant(0))
    return opset.broadcast(opset.constant(np.int32(0)), count)


def _smallest_above(threshold: float) -> npt.NDArray[np.float32]:
    """The smallest FP32 number above a threshold.

    OpenVINO suppresses from its threshold on, torchvision only above it. The result is never subnormal, because OpenVINO may treat subnormal numbers as zero.
    """
    above = np.array(threshold, np.float32)
    if float(above) <= threshold:
        above = np.nextafter(above, np.float32(np.inf), dtype=np.float32)
    return np.maximum(above, np.finfo(np.float32).tiny, dtype=np.float32)
