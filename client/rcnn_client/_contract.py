"""The detector's tensors and parameters as Triton names them: the request out, the answer in.

Shapes: D rows per picture, fixed by the model and padded; only the first `num_detections` are real.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferResult, model_config_pb2

from ._detections import Detections
from ._errors import NotADetectorError, ServerError

# Names and types of config.pbtxt in model_repository/faster_rcnn and in faster_rcnn_pixels.
ENCODED = {"image": "TYPE_STRING"}
PIXELS = {"pixels": "TYPE_UINT8"}
PIXELS_SUFFIX = "_pixels"
OUTPUTS = {
    "boxes": "TYPE_FP32",
    "scores": "TYPE_FP32",
    "labels": "TYPE_INT64",
    "num_detections": "TYPE_INT32",
}


@dataclass(frozen=True)
class Contract:
    """What the client must know about the served model.

    Attributes:
        class_names: index is the label; index 0 is the background.
        max_detections: D, the largest number of detections for one picture.
        takes_pixels: whether the model has the input `pixels`.
    """

    class_names: list[str]
    max_detections: int
    takes_pixels: bool


def read_model_config(config: Any, expected_inputs: Mapping[str, str] = ENCODED) -> Contract:
    """Check that a config (inference.ModelConfig) is a detector's, and read what the client needs.

    Args:
        expected_inputs: ENCODED or PIXELS.

    Raises:
        NotADetectorError: it is not a detector's; the message says what differs.
    """

    def types(tensors: Any) -> dict[str, str]:
        return {tensor.name: model_config_pb2.DataType.Name(tensor.data_type) for tensor in tensors}

    inputs, outputs = types(config.input), types(config.output)
    required = {tensor.name for tensor in config.input if not tensor.optional}
    takes = expected_inputs.items() <= inputs.items() and required <= expected_inputs.keys()
    if not takes or not OUTPUTS.items() <= outputs.items() or config.max_batch_size < 1:
        raise NotADetectorError(
            f"model {config.name!r} is no detector: it takes {inputs}, answers {outputs} and has "
            f"max_batch_size {config.max_batch_size}; expected {expected_inputs}, {OUTPUTS} and at least 1. "
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
    return Contract(class_names, max_detections, PIXELS.items() <= inputs.items())


def encoded_input(encoded: bytes) -> InferInput:
    """`image` BYTES [1, 1]."""
    tensor = InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[encoded]], dtype=object))
    return tensor


def pixels_input(pixels: NDArray[np.uint8], region: str | None = None) -> InferInput:
    """`pixels` UINT8 [1, height, width, 3]; if a `region` is named, they are in that shared memory."""
    tensor = InferInput("pixels", [1, *pixels.shape], "UINT8")
    if region is None:
        # NumPy makes it contiguous much faster than tritonclient would, and lets other threads run.
        tensor.set_data_from_numpy(np.ascontiguousarray(pixels)[None])
    else:
        tensor.set_shared_memory(region, pixels.nbytes)
    return tensor


def read_answer(answer: InferResult, contract: Contract, image_name: str) -> Detections:
    """Output tensors of one picture -> its detections, padding cut off.

    Raises:
        ServerError: the shapes differ from the contract's, or a label has no class name.
    """
    tensors = {name: answer.as_numpy(name) for name in OUTPUTS}
    boxes, scores, labels, num_detections = tensors.values()
    shapes = {name: None if tensor is None else tensor.shape for name, tensor in tensors.items()}
    rows = contract.max_detections
    expected = {"boxes": (1, rows, 4), "scores": (1, rows), "labels": (1, rows), "num_detections": (1, 1)}
    if shapes != expected:
        raise ServerError(f"{image_name}: the server answered shapes {shapes}, expected {expected}")
    count = int(num_detections[0, 0])
    labels = labels[0, :count].copy()  # copies, as the tensors are read-only views of the whole answer
    if not 0 <= count <= rows or not np.isin(labels, np.arange(len(contract.class_names))).all():
        raise ServerError(
            f"{image_name}: the server answered num_detections {count} and labels {labels.tolist()}; "
            f"expected at most {rows}, and labels below {len(contract.class_names)}. "
            "If the model was replaced, open a new Detector"
        )
    names = [contract.class_names[label] for label in labels]
    return Detections(boxes[0, :count].copy(), scores[0, :count].copy(), labels, names)
