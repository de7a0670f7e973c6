"""Turns the outputs of a step, or its error, into Triton's response.

Imported inside Triton's Python stub only.
"""

import logging
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from rcnn_backend.devices import Array
from rcnn_backend.errors import InvalidInputError, LostTensorError, UnusableDeviceError


def make_response(outputs: dict[str, Array]) -> Any:
    """A response with the outputs, by name. Arrays that are not C-contiguous are copied."""
    return pb_utils.InferenceResponse([_tensor(name, array) for name, array in outputs.items()])


def _tensor(name: str, array: Array) -> Any:
    if isinstance(array, np.ndarray):
        return pb_utils.Tensor(name, np.ascontiguousarray(array))
    contiguous = array if array.flags.c_contiguous else array.copy(order="C")  # Triton ignores strides
    # Pass the array itself: Triton synchronises with an array's stream, but not with a raw DLPack capsule's.
    return pb_utils.Tensor.from_dlpack(name, contiguous)


def make_error_response(error: Exception) -> Any:
    """An error response with the code that clients act on. Unexpected errors are also logged."""
    code = pb_utils.TritonError.INTERNAL
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, InvalidInputError):
        code, message = pb_utils.TritonError.INVALID_ARG, str(error)
    elif isinstance(error, LostTensorError | UnusableDeviceError):
        code, message = pb_utils.TritonError.UNAVAILABLE, str(error)
    else:
        logging.getLogger(__name__).exception("request failed", exc_info=error)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
