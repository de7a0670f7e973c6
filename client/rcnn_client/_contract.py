"""The detector's tensors and parameters as Triton names them: the request out, the answer in.

Shapes: D rows per picture, fixed by the model and padded; only the first `num_detections` are real.
"""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput, InferResult, model_config_pb2

from ._detections import Detections
from ._errors import InvalidParameterError, NotADetectorError, ServerError

# Names and types of model_repository/faster_rcnn/config.pbtxt.
INPUTS = {"image": "TYPE_STRING"}
OUTPUTS = {
    "boxes": "TYPE_FP32",
    "scores": "TYPE_FP32",
    "labels": "TYPE_INT64",
    "num_detections": "TYPE_INT32",
}


@dataclass(frozen=True)
class ModelInfo:
    """What the client must know of the served model.

    Attributes:
        class_names: index is the label; index 0 is the background.
        max_detections: D, the most that one picture can get.
    """

    class_names: list[str]
    max_detections: int


def read_model_config(config: Any) -> ModelInfo:
    """Check that a config (inference.ModelConfig) is a detector's, and take from it what a client needs.

    Raises:
        NotADetectorError: it is not; the message says what differs.
    """

    def types(tensors: Any) -> dict[str, str]:
        return {tensor.name: model_config_pb2.DataType.Name(tensor.data_type) for tensor in tensors}

    inputs, outputs = types(config.input), types(config.output)
    if inputs != INPUTS or not OUTPUTS.items() <= outputs.items() or config.max_batch_size < 1:
        raise NotADetectorError(
            f"model {config.name!r} is no detector: it takes {inputs}, answers {outputs} and has "
            f"max_batch_size {config.max_batch_size}; expected {INPUTS}, {OUTPUTS} and at least 1. "
            "Name the whole detector, not one of its steps"
        )
    try:
        class_names = json.loads(config.parameters["class_names"].string_value)
    except json.JSONDecodeError:
        class_names = None
    if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
        raise NotADetectorError(
            f"model {config.name!r} carries no class names: the parameter class_names of its config must be "
            "a JSON list of strings; export the detector again with rcnn-export"
        )
    max_detections = next(tensor.dims[0] for tensor in config.output if tensor.name == "scores")
    return ModelInfo(class_names, max_detections)


def request_parameters(
    model: ModelInfo, score_thresh: float | None, nms_thresh: float | None, detections_per_img: int | None
) -> dict[str, float | int]:
    """Request parameters of the overrides that are not None.

    Raises:
        InvalidParameterError: a threshold outside 0..1, or detections_per_img outside 1..D.
    """
    parameters: dict[str, float | int] = {}
    for name, thresh in (("score_thresh", score_thresh), ("nms_thresh", nms_thresh)):
        if thresh is not None:
            if not 0 <= thresh <= 1:
                raise InvalidParameterError(f"{name} is {thresh}, expected 0 to 1")
            parameters[name] = float(thresh)
    if detections_per_img is not None:
        if not 1 <= detections_per_img <= model.max_detections:
            raise InvalidParameterError(
                f"detections_per_img is {detections_per_img}, expected 1 to {model.max_detections}, "
                "the most that the model was exported for"
            )
        parameters["detections_per_img"] = operator.index(detections_per_img)
    return parameters


def request_inputs(encoded: bytes) -> list[InferInput]:
    """Input tensors of one picture: `image` BYTES [1, 1]."""
    tensor = InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[encoded]], dtype=object))
    return [tensor]


def read_answer(answer: InferResult, model: ModelInfo, image_name: str) -> Detections:
    """Output tensors of one picture -> its detections, padding cut off.

    Raises:
        ServerError: tensors of other shapes than the contract's, or a label without a name.
    """
    tensors = {name: answer.as_numpy(name) for name in OUTPUTS}
    boxes, scores, labels, num_detections = tensors.values()
    shapes = {name: None if tensor is None else tensor.shape for name, tensor in tensors.items()}
    rows = model.max_detections
    expected = {"boxes": (1, rows, 4), "scores": (1, rows), "labels": (1, rows), "num_detections": (1, 1)}
    if shapes != expected:
        raise ServerError(f"{image_name}: the server answered shapes {shapes}, expected {expected}")
    count = int(num_detections[0, 0])
    labels = labels[0, :count].copy()  # copies, as the tensors are read-only views of the whole answer
    if not 0 <= count <= rows or not np.isin(labels, np.arange(len(model.class_names))).all():
        raise ServerError(
            f"{image_name}: the server answered num_detections {count} and labels {labels.tolist()}; "
            f"expected at most {rows}, and labels below {len(model.class_names)}. "
            "If the model was replaced, open a new Detector"
        )
    names = [model.class_names[label] for label in labels]
    return Detections(boxes[0, :count].copy(), scores[0, :count].copy(), labels, names)
