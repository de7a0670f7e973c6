"""What every Python model of the repository does with Triton's requests and responses.

Imported inside Triton's Python stub only, where ``triton_python_backend_utils`` exists.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from rcnn_backend.errors import InvalidInputError

Tensors = dict[str, npt.NDArray[Any]]


def answer_each(requests: Sequence[Any], compute: Callable[[Tensors], Tensors]) -> list[Any]:
    """Computes request by request; an exception is the answer of its request alone."""
    responses = []
    for request in requests:
        try:
            responses.append(_response(compute(_inputs(request))))
        except Exception as error:
            responses.append(_error_response(error))
    return responses


def answer_together(
    requests: Sequence[Any],
    compute: Callable[[Tensors, list[Any]], Tensors],
    read_options: Callable[[Mapping[str, Any]], Any] = dict,
) -> list[Any]:
    """Computes one batch joined from all requests, then splits it again.

    ``read_options`` turns a request's parameters into what ``compute`` gets for each of
    its images; a request whose parameters it refuses is answered with that error and
    leaves the batch.
    """
    responses: list[Any] = [None] * len(requests)
    accepted: list[int] = []
    options: list[Any] = []
    for index, request in enumerate(requests):
        try:
            option = read_options(json.loads(request.parameters() or "{}"))
        except Exception as error:
            responses[index] = _error_response(error)
            continue
        accepted.append(index)
        options += [option] * _batch_size(request)
    if not accepted:
        return responses
    try:
        outputs = compute(_join([_inputs(requests[index]) for index in accepted]), options)
    except Exception as error:
        for index in accepted:
            responses[index] = _error_response(error)
        return responses
    first = 0
    for index in accepted:
        last = first + _batch_size(requests[index])
        responses[index] = _response({name: array[first:last] for name, array in outputs.items()})
        first = last
    return responses


def _inputs(request: Any) -> Tensors:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _batch_size(request: Any) -> int:
    return int(request.inputs()[0].shape()[0])


def _join(batches: list[Tensors]) -> Tensors:
    if len(batches) == 1:
        return batches[0]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _response(outputs: Tensors) -> Any:
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in outputs.items()]
    )


def _error_response(error: Exception) -> Any:
    if isinstance(error, InvalidInputError):
        failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    else:
        logging.getLogger(__name__).exception("request failed", exc_info=error)
        failure = pb_utils.TritonError(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(error=failure)
