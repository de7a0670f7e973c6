"""ONNX Runtime's CPU operators as functions: one-node graphs, built once and kept."""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper

OPSET = 20
IR_VERSION = 10
Float = npt.NDArray[np.float32]
Value = tuple[str, int, list[Any]]  # a tensor's name, element type and shape


def non_max_suppression(boxes: Float, scores: Float, iou_threshold: float) -> npt.NDArray[np.int64]:
    """ONNX NonMaxSuppression of one group: boxes [n, 4], scores [n] -> kept indices, best first.

    Greedy: of two boxes whose IoU exceeds the threshold the lower-scored goes; a box
    already gone suppresses nothing; of equal scores the lower index comes first.
    """
    inputs = {
        "boxes": boxes[None],
        "scores": scores[None, None],
        "max_output_boxes_per_class": np.array([len(boxes)], np.int64),
        "iou_threshold": np.array([iou_threshold], np.float32),
    }
    selected: npt.NDArray[np.int64] = _nms_session().run(None, inputs)[0]  # [kept, 3]: image, class, box
    return selected[:, 2]


def roi_align(
    feature: Float,
    boxes: Float,
    batch_indices: npt.NDArray[np.int64],
    spatial_scale: float,
    output_size_hw: tuple[int, int],
    sampling_ratio: int,
) -> Float:
    """ONNX RoiAlign with torchvision's ``aligned=False``: feature [B, C, h, w], boxes [n, 4] -> [n, C, *output]."""
    session = _roi_align_session(spatial_scale, output_size_hw, sampling_ratio)
    output: Float = session.run(None, {"feature": feature, "boxes": boxes, "batch_indices": batch_indices})[0]
    return output


@cache
def _nms_session() -> onnxruntime.InferenceSession:
    inputs: list[Value] = [
        ("boxes", TensorProto.FLOAT, [1, None, 4]),
        ("scores", TensorProto.FLOAT, [1, 1, None]),
        ("max_output_boxes_per_class", TensorProto.INT64, [1]),
        ("iou_threshold", TensorProto.FLOAT, [1]),
    ]
    return _session("NonMaxSuppression", inputs, ("selected", TensorProto.INT64, [None, 3]), {}, threads=1)


@cache
def _roi_align_session(
    spatial_scale: float, output_size_hw: tuple[int, int], sampling_ratio: int
) -> onnxruntime.InferenceSession:
    inputs: list[Value] = [
        ("feature", TensorProto.FLOAT, [None] * 4),
        ("boxes", TensorProto.FLOAT, [None, 4]),
        ("batch_indices", TensorProto.INT64, [None]),
    ]
    attributes = {
        "mode": "avg",
        "output_height": output_size_hw[0],
        "output_width": output_size_hw[1],
        "sampling_ratio": max(sampling_ratio, 0),
        "spatial_scale": spatial_scale,
        "coordinate_transformation_mode": "output_half_pixel",
    }
    return _session("RoiAlign", inputs, ("pooled", TensorProto.FLOAT, [None] * 4), attributes)


def _session(
    operator: str,
    inputs: list[Value],
    output: Value,
    attributes: dict[str, Any],
    threads: int = 0,
) -> onnxruntime.InferenceSession:
    node = helper.make_node(operator, [name for name, _, _ in inputs], [output[0]], **attributes)
    graph = helper.make_graph(
        [node],
        operator,
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*output)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
