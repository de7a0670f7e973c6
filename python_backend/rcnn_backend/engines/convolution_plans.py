"""``torch.ops.rcnn.convolution`` on a GPU, computed by the fastest of cuDNN's plans and torch's operators.

cuDNN has several plans for a graph; which one is the fastest depends on the GPU and the shapes. In FP16 most graphs with
a residual have only plans that must be compiled: torch's operators compute them, or torch adds the residual after a plan.

INT8 convolutions, ``torch.ops.rcnn.convolution_int8``, have a kernel of this project, ``convolution_int8_gpu``. cuDNN must
compile each of its plans, so only the largest convolutions try them. An INT8 convolution that neither supports is computed
by torch's operators, in FP32 or FP64. Importing this module registers both operators for GPUs.
"""

import functools
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import cudnn
import torch
from torch import Tensor

from rcnn_backend.engines.convolution import CHANNELS_LAST, Convolution, convolve
from rcnn_backend.engines.convolution_int8 import convolve_int8, describe_int8
from rcnn_backend.engines.cudnn_graphs import CudnnGraph
from rcnn_backend.engines.plan_choices import PlanChoices, cache_path

logger = logging.getLogger(__name__)

MAX_PLANS = 1 << 13
# Counts only plans that run. torch's come first, then cuDNN's, starting with those that its heuristics expect to be fast.
MAX_TIMED = 18
# How many of the plans that cuDNN compiles are tried for an INT8 convolution, and the time that our own kernel must exceed.
MAX_COMPILED, MIN_MS_TO_COMPILE = 4, 0.1
WARM_UPS, TIMED_RUNS = 2, 5
# The GPU waits for 0.6 ms, so that the timed runs are queued before the first one starts.
HEAD_START_CYCLES = 1_000_000

Tensors = Sequence[Tensor | None]  # x, weight, bias, residual; for INT8 also scale and residual_scale
Plan = Callable[..., Tensor]
# A name, which does not depend on the shapes, and a function that prepares the plan.
Candidate = tuple[str, Callable[[], Plan]]


@functools.cache
def plans_of(device: torch.device) -> "ConvolutionPlans":
    """The plans for a GPU; all engines of this process share them."""
    return ConvolutionPlans(device)


class ConvolutionPlans:
    """Runs convolutions on a GPU. The plan for a convolution is chosen when its shapes first occur.

    Plans that are part of a CUDA graph are always kept. Among the others, the least recently used are dropped.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._handle = cudnn.create_handle()
        self._plans: OrderedDict[Convolution, Plan] = OrderedDict()
        self._captured: dict[Convolution, Plan] = {}
        self.choices = PlanChoices(cache_path(torch.cuda.get_device_name(device), cudnn.backend_version()))

    def run(self, convolution: Convolution, *tensors: Tensor | None) -> Tensor:
        """The result, on torch's current stream. The tensors are in channels-last order.

        Raises:
            RuntimeError: the shapes are new, and a CUDA graph is being captured.
        """
        self._follow_stream()
        plan = self._captured.get(convolution) or self._plans.get(convolution)
        if torch.cuda.is_current_stream_capturing():
            if plan is None:
                raise RuntimeError(f"a convolution must run once before it is captured: {convolution}")
            self._captured[convolution] = plan
        else:
            plan = plan or self._choose(convolution, tensors)
            self._plans[convolution] = plan
            self._plans.move_to_end(convolution)
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        return plan(*tensors)

    def measure(self, convolution: Convolution, tensors: Tensors) -> list[tuple[float, str, Plan]]:
        """Milliseconds, name and plan of each plan that is worth trying and runs, the fastest first."""
        self._follow_stream()
        timed = _time_first(MAX_TIMED, self._candidates(convolution), tensors)
        if not timed or min(timed)[0] > MIN_MS_TO_COMPILE:
            timed += _time_first(MAX_COMPILED, self._compiled_candidates(convolution), tensors)
        return sorted(timed, key=lambda each: each[0])

    def _choose(self, convolution: Convolution, tensors: Tensors) -> Plan:
        """The plan that was chosen earlier for such a convolution, or else the one that is the fastest now."""
        if plan := self._build_chosen(convolution, tensors):
            return plan
        timed = self.measure(convolution, tensors)
        # Either no plan supports this INT8 convolution, or memory is exhausted: then the caller gets torch's error.
        if not timed:
            return _torch_plan(convolution)
        _, name, fastest = timed[0]
        self.choices.put(convolution, name)
        # Build the plan again: the timed plans share one graph, which keeps the kernels of all of them.
        return self._build_chosen(convolution, tensors) or fastest

    def _build_chosen(self, convolution: Convolution, tensors: Tensors) -> Plan | None:
        chosen = self.choices.get(convolution)
        if chosen is None:
            return None
        for name, make in itertools.chain(
            self._candidates(convolution), self._compiled_candidates(convolution)
        ):
            if name == chosen and (plan := _prepare(name, make, tensors)):
                return plan
        return None

    def _candidates(self, convolution: Convolution) -> Iterator[Candidate]:
        """The plans that need no compilation for these shapes."""
        if convolution.dtype == torch.int8:
            from rcnn_backend.engines.convolution_int8_gpu import int8_candidates  # needs CuPy

            yield from int8_candidates(convolution, self._device)
            return
        yield "torch", lambda: _torch_plan(convolution)
        if convolution.relu:
            yield "torch.cudnn", lambda: _torch_relu_plan(convolution)
        yield from self._graph_candidates(convolution)
        if convolution.has_residual and convolution.dtype == torch.float16:
            for name, make in self._graph_candidates(convolution._replace(has_residual=False, relu=False)):
                yield f"{name} + residual", functools.partial(_with_residual, make, convolution.relu)

    def _compiled_candidates(self, convolution: Convolution) -> Iterator[Candidate]:
        """The plans that cuDNN compiles, half a second each."""
        if convolution.dtype == torch.int8:
            yield from self._graph_candidates(convolution)

    def _graph_candidates(self, convolution: Convolution) -> Iterator[Candidate]:
        try:
            graph = CudnnGraph(convolution, self._handle)
        except Exception as error:  # cuDNN raises several types
            logger.debug("cuDNN has no graph for %s: %s", convolution, error)
            return
        for name, index in graph.plans.items():
            yield name, functools.partial(_graph_plan, graph, index)

    def _follow_stream(self) -> None:
        stream = torch.cuda.current_stream(self._device)
        cudnn.set_stream(handle=self._handle, stream=stream.cuda_stream)


def _graph_plan(graph: CudnnGraph, index: int) -> Plan:
    return functools.partial(graph.run, index, graph.build(index))


def _with_residual(make: Callable[[], Plan], relu: bool) -> Plan:
    """A plan without residual and ReLU, followed by torch's operators for them."""
    convolution = make()

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
        found = convolution(x, weight, bias, None)
        found += residual
        return found.relu_() if relu else found

    return run


def _torch_plan(convolution: Convolution) -> Plan:
    operator: Plan = convolve
    arguments: tuple[object, ...] = (*convolution.geometry, convolution.relu)
    if convolution.dtype == torch.int8:
        operator, arguments = convolve_int8, (*arguments, convolution.result_dtype or torch.int8)
    return lambda *tensors: operator(*tensors, *arguments)


def _torch_relu_plan(convolution: Convolution) -> Plan:
    stride, padding, dilation, groups = convolution.geometry

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        if residual is None:
            return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
        return torch.cudnn_convolution_add_relu(
            x, weight, residual, 1, bias, stride, padding, dilation, groups
        )

    return run


def _prepare(name: str, make: Callable[[], Plan], tensors: Tensors) -> Plan | None:
    """The plan after its first run; None if it cannot run."""
    try:
        plan = make()
        plan(*tensors)
    except Exception as error:  # several types: cuDNN offers plans that it then refuses to run
        logger.debug("the plan %s cannot run: %s", name, error)
        return None
    return plan


def _time_first(
    most: int, candidates: Iterator[Candidate], tensors: Tensors
) -> list[tuple[float, str, Plan]]:
    """Milliseconds, name and plan of the first ``most`` candidates that run."""
    plans = ((name, _prepare(name, make, tensors)) for name, make in candidates)
    running = itertools.islice(((name, plan) for name, plan in plans if plan), most)
    return [(_time_ms(plan, tensors), name, plan) for name, plan in running]


def _time_ms(plan: Plan, tensors: Tensors) -> float:
    """The mean GPU time of a run in milliseconds, over several consecutive runs."""
    for _ in range(WARM_UPS):
        plan(*tensors)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START_CYCLES)
    start.record()
    for _ in range(TIMED_RUNS):
        plan(*tensors)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / TIMED_RUNS


def _convolve_on_gpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
) -> Tensor:
    convolution = Convolution.of(x, weight, bias, residual, stride, padding, dilation, groups, relu)
    return plans_of(x.device).run(convolution, *_in_order(x, weight, bias, residual))


def _convolve_int8_on_gpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor,
    residual_scale: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
    dtype: torch.dtype,
) -> Tensor:
    geometry = stride, padding, dilation, groups
    convolution = describe_int8(x, weight, bias, residual, *geometry, relu, dtype)
    tensors = _in_order(x, weight, bias, residual)
    return plans_of(x.device).run(convolution, *tensors, scale, residual_scale)


def _in_order(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors, those with four axes in channels-last order."""
    return [
        tensor.contiguous(memory_format=CHANNELS_LAST) if tensor is not None and tensor.ndim == 4 else tensor
        for tensor in tensors
    ]


torch.library.impl("rcnn::convolution", "CUDA", _convolve_on_gpu)
torch.library.impl("rcnn::convolution_int8", "CUDA", _convolve_int8_on_gpu)
