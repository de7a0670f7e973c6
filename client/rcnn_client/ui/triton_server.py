"""The Triton server behind the page: its detectors, and how the time of a request is spent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from .. import aio
from .._connection import Connection, TLSConfig
from .._contract import read_model_config
from .._errors import InvalidParameterError, ModelNotFoundError, NotADetectorError, RcnnError, from_transport
from .._info import step_models
from ..tools.triton_statistics import StepTime, step_time

T = TypeVar("T")

CALL_TIMEOUT_S = 10.0  # for a call without a picture


@dataclass(frozen=True)
class Timing:
    """How the time of a request was spent, in milliseconds.

    Attributes:
        total_ms: from sending the picture to Triton until its answer was read.
        network_ms: the part of `total_ms` before Triton had the request and after it sent the answer.
        queue_ms, compute_ms: sums over the steps inside Triton, some of which may run at the same time.
        steps: each step, in the order in which the data flows.
        num_requests: how many requests were answered in that time; if more than one, Triton's times are their mean.
    """

    total_ms: float
    network_ms: float
    queue_ms: float
    compute_ms: float
    steps: list[StepTime]
    num_requests: int


class TritonServer:
    """The calls of rcnn-ui to its Triton server; belongs to one event loop from the first call on.

    Args:
        url, tls, headers: as `Detector` takes them, for one server.

    Raises:
        InvalidParameterError: an argument is not valid.
    """

    def __init__(self, url: str, tls: TLSConfig | None, headers: Mapping[str, str]) -> None:
        self.url, self._tls, self._headers = url, tls, headers
        self._connection = Connection(url, tls, headers)
        self._opened: Any = None

    def detector(self, model: str, timeout_s: float) -> aio.Detector:
        """A detector for one request: a model may be replaced by another, with other class names, at any time."""
        return aio.Detector(
            self.url, model, timeout_s=timeout_s, tls=self._tls, headers=self._headers, retries=1
        )

    async def close(self) -> None:
        """Close the connection."""
        if self._opened is not None:
            await self._opened.close()

    async def find_detectors(self) -> list[str]:
        """Names of the detectors that the server has loaded, in alphabetical order.

        Raises:
            RcnnError: the server does not answer, or refuses.
        """
        # The statistics list the loaded models; most servers restrict access to the repository index.
        reply = await self._call("get_inference_statistics", "")
        names = sorted({each.name for each in reply.model_stats})
        are_detectors = await asyncio.gather(*map(self._is_detector, names))
        return [name for name, is_detector in zip(names, are_detectors, strict=True) if is_detector]

    async def only_detector(self) -> str:
        """Name of the only detector on the server.

        Raises:
            ModelNotFoundError: there is none.
            InvalidParameterError: there are several.
        """
        names = await self.find_detectors()
        if not names:
            raise ModelNotFoundError(f"the server at {self.url} has no detector; serve one with rcnn-serve")
        if len(names) > 1:
            raise InvalidParameterError(
                f"the server at {self.url} has several detectors, choose one with model=: {', '.join(names)}"
            )
        return names[0]

    async def time(self, model: str, request: Callable[[], Awaitable[T]]) -> tuple[T, Timing | None]:
        """Send a request to a model; returns its answer and timing, or None if Triton's statistics do not show it."""
        try:
            config = (await self._call("get_model_config", model)).config
            before = await self._statistics()
        except RcnnError:
            return await request(), None
        begin = time.perf_counter()
        answer = await request()
        total_ms = (time.perf_counter() - begin) * 1e3
        try:
            after = await self._statistics()
        except RcnnError:
            return answer, None
        return answer, _split(total_ms, model, step_models(config) or [model], before, after)

    async def _is_detector(self, model: str) -> bool:
        try:
            read_model_config((await self._call("get_model_config", model)).config)
        except (NotADetectorError, ModelNotFoundError):  # it may just have been unloaded
            return False
        return True

    async def _statistics(self) -> dict[str, Any]:
        return {each.name: each for each in (await self._call("get_inference_statistics", "")).model_stats}

    async def _call(self, method: str, model: str) -> Any:
        if self._opened is None:
            self._opened = self._connection.open(triton.InferenceServerClient, 0)
        try:
            call = getattr(self._opened, method)
            return await call(model, headers=self._connection.headers, client_timeout=CALL_TIMEOUT_S)
        except InferenceServerException as error:
            raise from_transport(
                error,
                url=self.url,
                model=model or "any",
                timeout_s=CALL_TIMEOUT_S,
                uses_tls=self._connection.uses_tls,
            ) from error


def _split(
    total_ms: float, model: str, steps: list[str], before: Mapping[str, Any], after: Mapping[str, Any]
) -> Timing | None:
    """The timing from two readings of the counters; None if they are not from the server that answered."""
    if not {model, *steps} <= before.keys() & after.keys():
        return None
    earlier, later = (reading[model].inference_stats.success for reading in (before, after))
    num_requests = later.count - earlier.count
    if num_requests < 1:
        return None
    in_triton_ms = (later.ns - earlier.ns) / 1e6 / num_requests
    times = [step_time(name, before[name], after[name]) for name in steps]
    queue_ms, compute_ms = sum(step.queue_ms for step in times), sum(step.compute_ms for step in times)
    network_ms = max(total_ms - in_triton_ms, 0.0)
    return Timing(total_ms, network_ms, queue_ms, compute_ms, times, num_requests)
