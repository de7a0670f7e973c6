"""What every Python model of the repository does with Triton's requests and responses.

Imported inside Triton's Python stub only, where ``triton_python_backend_utils`` exists.
"""

import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

from rcnn_backend.contract.chain import Chain, count_levels, expand
from rcnn_backend.contract.samples import SUFFIX
from rcnn_backend.devices import Array, Cpu, Device, Gpu
from rcnn_backend.errors import InvalidInputError, LostTensorError
from rcnn_backend.steps.lost_tensors import (
    Arrived,
    find_lost,
    raise_if_lost,
    sent_to,
    start_download,
    take_samples,
    warm_up,
)
from rcnn_backend.steps.metrics import StepMetrics

Tensors = dict[str, Array]


class Request(NamedTuple):
    """A request's tensors, and what ``read_options`` made of its parameters."""

    tensors: Tensors
    options: Any

    @property
    def batch_size(self) -> int:
        """How many images it holds."""
        return len(next(iter(self.tensors.values())))


class Step:
    """One instance of a model: the device it computes on, and how it answers requests.

    Tensors are CuPy arrays on a GPU instance, wherever they come from, and NumPy arrays on the CPU.

    Args:
        chain: the family that the step is declared in; None for an engine, which runs any network.
        name: the step whose outputs the model gives, as the family declares it.
    """

    def __init__(self, args: Mapping[str, str], chain: Chain | None = None, name: str = "") -> None:
        self.config: dict[str, Any] = json.loads(args["model_config"])
        self.device = _open_device(args)
        self._chain, self._declared = chain, chain.step(name) if chain else None
        self._samples = name + SUFFIX
        self._sends_samples = self._samples in (output["name"] for output in self.config["output"])
        self._counted = self._declared.counted if self._declared else ""
        self._metrics = StepMetrics(args["model_name"], self._counted)
        if self.device.is_gpu:
            self._metrics.watch_cpu_bytes()
        self.run(warm_up, self.device)

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        """Runs something on the step's device, to its end: a warm-up."""
        with self.device.active():
            function(*arguments)
            self.device.synchronize()

    def answer_each(
        self,
        requests: Sequence[Any],
        compute: Callable[[list[Request]], list[Tensors | Exception]],
        *,
        read_options: Callable[[Mapping[str, Any]], Any] = dict,
    ) -> list[Any]:
        """Computes all requests in one call, which gives each its own outputs or its own error.

        A request whose parameters ``read_options`` refuses is answered with that error.
        """
        began = time.perf_counter()
        with self.device.active():
            responses, accepted = self._read(requests, read_options)
            try:
                results = compute(list(accepted.values())) if accepted else []
                for result in results:
                    if not isinstance(result, Exception):
                        self._add_samples(result)
                counts = [self._counts(result) for result in results if not isinstance(result, Exception)]
                self.device.synchronize()
                self._tell(counts)
            except Exception as error:
                results = [error] * len(accepted)
            for index, result in zip(accepted, results, strict=True):
                responses[index] = (
                    self._refuse(result) if isinstance(result, Exception) else _response(result)
                )
        self._metrics.took(time.perf_counter() - began)
        return responses

    def answer_together(
        self,
        requests: Sequence[Any],
        compute: Callable[[Tensors, list[Any]], Tensors],
        *,
        read_options: Callable[[Mapping[str, Any]], Any] = dict,
    ) -> list[Any]:
        """Computes one batch joined from all requests, then splits it again.

        ``read_options`` turns a request's parameters into what ``compute`` gets for each of
        its images; a request whose parameters it refuses is answered with that error and
        leaves the batch. A request of which a tensor got lost on the way is answered with that error.
        """
        began = time.perf_counter()
        with self.device.active():
            responses, accepted = self._read(requests, read_options)
            if not accepted:
                return responses
            options = [request.options for request in accepted.values() for _ in range(request.batch_size)]
            try:
                tensors = self._join([request.tensors for request in accepted.values()])
                arrived = Arrived(tensors) if self._declared else None
                outputs = compute(tensors, options)
                self._add_samples(outputs)
                counts = self._counts(outputs)
                self.device.synchronize()
                self._tell([counts])
                lost = self._find_lost(arrived, len(options)) if arrived else []
            except Exception as error:
                for index in accepted:
                    responses[index] = self._refuse(error)
                return responses
            first = 0
            for index, request in accepted.items():
                last = first + request.batch_size
                own = {name: array[first:last] for name, array in outputs.items()}
                responses[index] = _checked_response(own, list(itertools.chain(*lost[first:last])))
                first = last
        self._metrics.took(time.perf_counter() - began)
        return responses

    def _add_samples(self, outputs: Tensors) -> None:
        """Puts the samples among the outputs, if the model's config declares them."""
        if self._declared and self._sends_samples:
            made = expand(self._declared.sampled, count_levels(outputs))
            outputs[self._samples] = take_samples([outputs[tensor.name] for tensor in made])

    def _find_lost(self, arrived: Arrived, batch: int) -> list[list[str]]:
        assert self._chain and self._declared
        return find_lost(sent_to(self._chain, self._declared, arrived.by_name()), batch)

    def _counts(self, outputs: Tensors) -> Array | None:
        """How many each image has, on its way to the host."""
        if not self._counted:
            return None
        counts = outputs[self._counted]
        return counts if isinstance(counts, np.ndarray) else start_download(counts)

    def _tell(self, counts: Sequence[Array | None]) -> None:
        for numbers in counts:
            if numbers is not None:
                self._metrics.found(numbers.ravel().tolist())

    def _refuse(self, error: Exception) -> Any:
        if isinstance(error, InvalidInputError):
            self._metrics.rejected(error.reason)
        return _error_response(error)

    def _read(
        self, requests: Sequence[Any], read_options: Callable[[Mapping[str, Any]], Any]
    ) -> tuple[list[Any], dict[int, Request]]:
        """The responses, so far to requests that cannot be read, and the other requests by their place."""
        responses: list[Any] = [None] * len(requests)
        accepted: dict[int, Request] = {}
        for index, request in enumerate(requests):
            try:
                options = read_options(json.loads(request.parameters() or "{}"))
                accepted[index] = Request(self._inputs(request), options)
            except Exception as error:
                responses[index] = self._refuse(error)
        return responses, accepted

    def _inputs(self, request: Any) -> Tensors:
        return {tensor.name(): self._to_device(tensor) for tensor in request.inputs()}

    def _to_device(self, tensor: Any) -> Array:
        if not tensor.is_cpu():
            return self.device.import_array(tensor)
        array = tensor.as_numpy()
        if array.dtype == np.object_ or not self.device.is_gpu:
            return array
        self._metrics.came_by_cpu(array.nbytes)
        return self.device.upload(array)

    def _join(self, batches: list[Tensors]) -> Tensors:
        if len(batches) == 1:
            return batches[0]
        return {name: self.device.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _open_device(args: Mapping[str, str]) -> Device:
    """The GPU that Triton gave the instance, if it gave one and CuPy is there to use it."""
    if args["model_instance_kind"] != "GPU":
        return Cpu()
    try:
        return Gpu(int(args["model_instance_device_id"]))
    except ImportError as error:
        pb_utils.Logger.log_warn(
            f"{args['model_name']} computes on the CPU, though there is a GPU: {error}. "
            "Run `pip install 'rcnn-backend[gpu]'` to use it"
        )
        return Cpu()


def _checked_response(outputs: Tensors, lost: Sequence[str]) -> Any:
    try:
        raise_if_lost(lost)
        return _response(outputs)
    except Exception as error:
        return _error_response(error)


def _response(outputs: Tensors) -> Any:
    return pb_utils.InferenceResponse([_tensor(name, array) for name, array in outputs.items()])


def _tensor(name: str, array: Array) -> Any:
    if isinstance(array, np.ndarray):
        return pb_utils.Tensor(name, np.ascontiguousarray(array))
    contiguous = array if array.flags.c_contiguous else array.copy(order="C")  # Triton knows no strides
    # The array itself: for a capsule Triton would not wait.
    return pb_utils.Tensor.from_dlpack(name, contiguous)


def _error_response(error: Exception) -> Any:
    code = pb_utils.TritonError.INTERNAL
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, InvalidInputError):
        code, message = pb_utils.TritonError.INVALID_ARG, str(error)
    elif isinstance(error, LostTensorError):
        code, message = pb_utils.TritonError.UNAVAILABLE, str(error)
    else:
        logging.getLogger(__name__).exception("request failed", exc_info=error)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
