"""Builds the requests to a detector and reads its answers, with the names that its Triton model uses.

Shapes: D rows per picture, fixed by the model and padded; only the first `num_detections` are real. M: side of a
mask. P: keypoints per detection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult, model_config_pb2

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
MaskForm = Literal["probabilities", "rle", "none"]
# Additional outputs of a Mask R-CNN and a Keypoint R-CNN.
MASKS = {"masks": "TYPE_FP16"}
RLES = {"rles": "TYPE_STRING"}
KEYPOINTS = {"keypoints": "TYPE_FP32", "keypoint_scores": "TYPE_FP32"}

COCO_KEYPOINTS = [
    "nose",
    *(
        f"{side}_{part}"
        for part in ("eye", "ear", "shoulder", "elbow", "wrist")
        for side in ("left", "right")
    ),
    *(f"{side}_{part}" for part in ("hip", "knee", "ankle") for side in ("left", "right")),
]


@dataclass(frozen=True)
class Contract:
    """What the client must know about the served model.

    Attributes:
        class_names: index is the label; index 0 is the background.
        max_detections: D, the largest number of detections for one picture.
        takes_pixels: whether the model has the input `pixels`.
        mask_size: M; None if the model returns no masks.
        keypoint_names: P names; None if the model returns no keypoints.
        has_rles: whether the model can also return masks as run-length codes.
    """

    class_names: list[str]
    max_detections: int
    takes_pixels: bool
    mask_size: int | None = None
    keypoint_names: list[str] | None = None
    has_rles: bool = False

    def output_shapes(self, masks: MaskForm) -> dict[str, tuple[int, ...]]:
        """The outputs to ask for, with their shapes for one picture.

        Args:
            masks: the form of the masks, if the model has any; without the output `rles` they are probabilities.
        """
        rows = self.max_detections
        shapes: dict[str, tuple[int, ...]] = {
            "boxes": (1, rows, 4),
            "scores": (1, rows),
            "labels": (1, rows),
            "num_detections": (1, 1),
        }
        if masks == "rle" and self.has_rles:
            shapes["rles"] = (1, rows)
        elif masks != "none" and self.mask_size is not None:
            shapes["masks"] = (1, rows, self.mask_size, self.mask_size)
        if self.keypoint_names is not None:
            shapes["keypoints"] = (1, rows, len(self.keypoint_names), 3)
            shapes["keypoint_scores"] = (1, rows, len(self.keypoint_names))
        return shapes


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
            f"model {config.name!r} is not a detector: it takes {inputs}, returns {outputs} and has "
            f"max_batch_size {config.max_batch_size}; expected {expected_inputs}, {OUTPUTS} and at least 1. "
            "Name the whole detector, not one of its steps"
        )
    class_names = _names(config, "class_names")
    if class_names is None:
        raise NotADetectorError(
            f"model {config.name!r} has no class names: the parameter class_names of its config must be "
            "a JSON list of strings; export the detector again with rcnn-export"
        )
    dims = {tensor.name: tensor.dims for tensor in config.output}
    return Contract(
        class_names,
        max_detections=dims["scores"][0],
        takes_pixels=PIXELS.items() <= inputs.items(),
        mask_size=dims["masks"][-1] if MASKS.items() <= outputs.items() else None,
        keypoint_names=(
            _keypoint_names(config, dims["keypoint_scores"][-1])
            if KEYPOINTS.items() <= outputs.items()
            else None
        ),
        has_rles=RLES.items() <= outputs.items(),
    )


def _keypoint_names(config: Any, count: int) -> list[str]:
    """The names in the config; if it has none, COCO's names for 17 keypoints, otherwise numbers from 0."""
    names = _names(config, "keypoint_names")
    if names is None:
        is_coco = count == len(COCO_KEYPOINTS)
        return list(COCO_KEYPOINTS) if is_coco else [str(number) for number in range(count)]
    if len(names) != count:
        raise NotADetectorError(
            f"model {config.name!r} returns {count} keypoints, but the parameter keypoint_names of its config has "
            f"{len(names)} names; export the detector again with rcnn-export"
        )
    return names


def _names(config: Any, parameter: str) -> list[str] | None:
    """The names in a parameter of a config; None if it is missing or is not a JSON list of strings."""
    if parameter not in config.parameters:
        return None
    try:
        names = json.loads(config.parameters[parameter].string_value)
    except json.JSONDecodeError:
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


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


def wanted_outputs(shapes: Mapping[str, tuple[int, ...]]) -> list[InferRequestedOutput]:
    """The outputs that `read_answer` reads; the server need not compute others."""
    return [InferRequestedOutput(name) for name in shapes]


def read_answer(
    answer: InferResult,
    contract: Contract,
    expected: dict[str, tuple[int, ...]],
    image_name: str,
    image_size_hw: tuple[int, int] | None,
    mask_thresh: float,
) -> Detections:
    """Output tensors of one picture -> its detections, without padding.

    Args:
        expected: the shapes of the outputs that were asked for.
        image_size_hw: size of the upright picture, if masks were asked for.
        mask_thresh: threshold of the masks, whether the server pasted them or not.

    Raises:
        ServerError: the shapes differ from the contract's, or a label has no class name.
    """
    tensors = {name: answer.as_numpy(name) for name in expected}
    shapes = {name: None if tensor is None else tensor.shape for name, tensor in tensors.items()}
    if shapes != expected:
        raise ServerError(f"{image_name}: the server answered shapes {shapes}, expected {expected}")
    count, rows = int(tensors["num_detections"][0, 0]), contract.max_detections
    # copies, as the tensors are read-only views of the whole answer
    real = {name: tensor[0, :count].copy() for name, tensor in tensors.items()}
    labels = real["labels"]
    is_known = (labels >= 0) & (labels < len(contract.class_names))
    if not (0 <= count <= rows and is_known.all()):
        raise ServerError(
            f"{image_name}: the server answered num_detections {count} and labels {labels.tolist()}; "
            f"expected at most {rows}, and labels below {len(contract.class_names)}. "
            "If the model was replaced, open a new Detector"
        )
    return Detections(
        real["boxes"],
        real["scores"],
        labels,
        [contract.class_names[label] for label in labels],
        real.get("masks"),
        image_size_hw,
        real.get("keypoints"),
        real.get("keypoint_scores"),
        contract.keypoint_names,
        mask_thresh,
        [rle.decode("latin-1") for rle in real["rles"]] if "rles" in real else None,
    )
