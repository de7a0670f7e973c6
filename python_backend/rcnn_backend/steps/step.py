"""What every Python model of the repository does with Triton's requests and responses.

Imported inside Triton's Python stub only, where ``triton_python_backend_utils`` exists.
"""

import itertools
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

from rcnn_backend.batches import run_batches
from rcnn_backend.contract.chain_types import Chain, count_levels, expand
from rcnn_backend.contract.executions import Executions
from rcnn_backend.contract.samples import SUFFIX
from rcnn_backend.devices import Array, Cpu, Device, Gpu
from rcnn_backend.errors import InvalidInputError, LostTensorError, UnusableDeviceError
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
from rcnn_backend.steps.process_end import ProcessEnd
from rcnn_backend.steps.responses import make_error_response, make_response

Tensors = dict[str, Array]
ReadOptions = Callable[[Mapping[str, Any]], Any]  # a request's parameters -> the model's options


class Request(NamedTuple):
    """A request's tensors, the options that ``read_options`` returned for it, and the outputs that it asks for."""

    tensors: Tensors
    options: Any
    wanted: frozenset[str]

    @property
    def batch_size(self) -> int:
        """How many images the request holds."""
        return len(next(iter(self.tensors.values())))


Run = Callable[[list[Request]], list[Tensors | Exception]]


class Step:
    """One instance of a model: the device that it computes on, and how it answers requests.

    Tensors are CuPy arrays on a GPU instance, wherever they come from, and NumPy arrays on the CPU.
    After an error that leaves the GPU unusable, the process ends as soon as its requests are answered.

    Args:
        chain: the family that declares the step; None for an engine, which runs any network.
        name: the family's name for the step whose outputs the model returns.
    """

    def __init__(self, args: Mapping[str, str], chain: Chain | None = None, name: str = "") -> None:
        # Pillow warns about odd files, and each warning would add a line to the server's log.
        warnings.filterwarnings("ignore", module="PIL")
        self.config: dict[str, Any] = json.loads(args["model_config"])
        self.device = _open_device(args)
        self._chain, self._declared = chain, chain.step(name) if chain else None
        self._samples = name + SUFFIX
        self._sends_samples = self._samples in (output["name"] for output in self.config["output"])
        self._counted = self._declared.counted if self._declared else ""
        self._metrics = StepMetrics(args["model_name"], self._counted)
        self._end = ProcessEnd()
        self._executions = Executions(self.device.device_id if isinstance(self.device, Gpu) else None)
        if self.device.is_gpu:
            self._metrics.watch_cpu_bytes()
        self.run(warm_up, self.device)

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        """Runs a function, such as a warm-up, on the step's device and waits until the device has finished it."""
        with self.device.active():
            function(*arguments)
            self.device.synchronize()

    def answer_each(
        self,
        requests: Sequence[Any],
        compute: Callable[[list[Request]], list[Tensors | Exception]],
        *,
        read_options: ReadOptions = dict,
    ) -> list[Any]:
        """Computes all requests in one call, which returns each request's own outputs or its own error.

        If the call itself fails, each request is computed separately.

        Args:
            requests: Triton's requests.
            compute: the computation of the model.
            read_options: turns a request's parameters into its ``options``. If it refuses them, the request
                is answered with that error.

        Returns:
            Triton's responses, one for each request.
        """

        def run(accepted: list[Request]) -> list[Tensors | Exception]:
            results = compute(accepted)
            for result in results:
                if not isinstance(result, Exception):
                    self._add_samples(result)
            counts = [self._counts(result) for result in results if not isinstance(result, Exception)]
            self.device.synchronize()
            self._observe_counts(counts)
            return results

        return self._answer(requests, read_options, run)

    def answer_together(
        self,
        requests: Sequence[Any],
        compute: Callable[[Tensors, list[Any]], Tensors],
        *,
        read_options: ReadOptions = dict,
    ) -> list[Any]:
        """Joins all requests into one batch, computes it, then splits it again.

        If the batch fails, each request is computed separately. A request that lost a tensor on the way
        to this step is answered with that error.

        Args:
            requests: Triton's requests.
            compute: the computation of the model, from the tensors [B, ...] and the options of each of the B
                images to the outputs [B, ...].
            read_options: turns a request's parameters into the options of each of its images. If it refuses
                them, the request is answered with that error and left out of the batch.

        Returns:
            Triton's responses, one for each request.
        """

        def run(accepted: list[Request]) -> list[Tensors | Exception]:
            options = [request.options for request in accepted for _ in range(request.batch_size)]
            tensors = self._join([request.tensors for request in accepted])
            arrived = Arrived(tensors) if self._declared else None
            outputs = compute(tensors, options)
            self._add_samples(outputs)
            counts = self._counts(outputs)
            self.device.synchronize()
            lost = self._find_lost(arrived, len(options)) if arrived else [[] for _ in options]
            self._observe_counts([counts])
            ends = itertools.accumulate(request.batch_size for request in accepted)
            return [
                _own_part(outputs, lost, slice(end - request.batch_size, end))
                for request, end in zip(accepted, ends, strict=True)
            ]

        return self._answer(requests, read_options, run)

    def _answer(self, requests: Sequence[Any], read_options: ReadOptions, run: Run) -> list[Any]:
        """The responses to all requests; ``run`` returns the outputs or the error of each readable request."""
        with self._end.executing, self._executions:
            if self._end.is_near:
                gone = UnusableDeviceError("the step's GPU failed, and its process is about to end")
                return [make_error_response(gone) for _ in requests]
            began = time.perf_counter()
            try:
                with self.device.active():
                    responses = self._compute(requests, read_options, run)
            except Exception as error:  # leaving the context of a failed GPU can also raise
                responses = [self._respond(error) for _ in requests]
            self._metrics.observe_execution(time.perf_counter() - began)
            return responses

    def _compute(self, requests: Sequence[Any], read_options: ReadOptions, run: Run) -> list[Any]:
        """The result of ``_answer``, computed on the active device."""
        results = self._read(requests, read_options)
        accepted = {index: each for index, each in enumerate(results) if isinstance(each, Request)}
        batches = [list(accepted)] if accepted else []
        computed = run_batches(lambda indices: run([accepted[i] for i in indices]), batches, self.device)
        return [
            self._respond(computed[index] if isinstance(each, Request) else each)
            for index, each in enumerate(results)
        ]

    def _add_samples(self, outputs: Tensors) -> None:
        """Adds the samples to the outputs if the model's config declares them."""
        if self._declared and self._sends_samples:
            made = expand(self._declared.sampled, count_levels(outputs))
            outputs[self._samples] = take_samples([outputs[tensor.name] for tensor in made])

    def _find_lost(self, arrived: Arrived, batch: int) -> list[list[str]]:
        assert self._chain and self._declared
        return find_lost(sent_to(self._chain, self._declared, arrived.by_name()), batch)

    def _counts(self, outputs: Tensors) -> Array | None:
        """Each image's value of the counted output; on a GPU, its copy to the host has only begun."""
        if not self._counted:
            return None
        counts = outputs[self._counted]
        return counts if isinstance(counts, np.ndarray) else start_download(counts)

    def _observe_counts(self, counts: Sequence[Array | None]) -> None:
        for numbers in counts:
            if numbers is not None:
                self._metrics.observe_counts(numbers.ravel().tolist())

    def _respond(self, result: Tensors | Exception) -> Any:
        """Triton's response with a request's outputs or its error."""
        if not isinstance(result, Exception):
            try:
                return make_response(result)
            except Exception as error:
                result = error
        if isinstance(result, InvalidInputError):
            self._metrics.count_rejection(result.reason)
        elif not self.device.is_usable():
            self._end.begin()
        return make_error_response(result)

    def _read(self, requests: Sequence[Any], read_options: ReadOptions) -> list[Request | Exception]:
        """Each request's tensors and options, or why they cannot be read."""
        results: list[Request | Exception] = []
        for request in requests:
            try:
                options = read_options(json.loads(request.parameters() or "{}"))
                wanted = frozenset(request.requested_output_names())
                results.append(Request(self._inputs(request), options, wanted))
            except Exception as error:
                results.append(error)
        return results

    def _inputs(self, request: Any) -> Tensors:
        return {tensor.name(): self._to_device(tensor) for tensor in request.inputs()}

    def _to_device(self, tensor: Any) -> Array:
        if not tensor.is_cpu():
            return self.device.import_array(tensor)
        array = tensor.as_numpy()
        if array.dtype == np.object_ or not self.device.is_gpu:
            return array
        self._metrics.count_cpu_bytes(array.nbytes)
        return self.device.upload(array)

    def _join(self, batches: list[Tensors]) -> Tensors:
        if len(batches) == 1:
            return batches[0]
        return {name: self.device.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _open_device(args: Mapping[str, str]) -> Device:
    """The GPU that Triton assigned to the instance, if there is one and CuPy is installed; otherwise the CPU."""
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


def _own_part(outputs: Tensors, lost: Sequence[list[str]], images: slice) -> Tensors | Exception:
    """The outputs for some images of a batch, or an error that names their lost tensors."""
    try:
        raise_if_lost(list(itertools.chain(*lost[images])))
    except LostTensorError as error:
        return error
    return {name: array[images] for name, array in outputs.items()}
