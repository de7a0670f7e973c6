"""Triton's own statistics of a model and of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from .._connection import Connection
from .._errors import from_transport
from .._info import step_models
from .endpoint import Endpoint

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class StepTime:
    """The mean times of a step between two readings.

    Attributes:
        queue_ms, compute_ms: mean per request; computing includes copying the input and output tensors.
        images_per_batch: how many images the step ran at once, on average.
    """

    name: str
    queue_ms: float
    compute_ms: float
    images_per_batch: float


class Statistics:
    """Reads the statistics of a model on a server; a context manager.

    Raises:
        RcnnError: the server cannot be reached or has no such model.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection = Connection(endpoint.url, endpoint.tls, endpoint.headers)
        self._client = self._connection.open(triton.InferenceServerClient, 0)
        try:
            config = self._call(self._client.get_model_config, endpoint.model).config
        except BaseException:
            self._client.close()
            raise
        self._steps = step_models(config) or [endpoint.model]

    def __enter__(self) -> Statistics:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def read(self) -> dict[str, Any]:
        """The counters of the model and of its steps since the server started, by name."""
        statistics = {}
        for name in {self._endpoint.model, *self._steps}:
            reply = self._call(self._client.get_inference_statistics, name)
            statistics[name] = reply.model_stats[0]
        return statistics

    def num_failed(self, before: dict[str, Any], after: dict[str, Any]) -> int:
        """How many requests failed in the model between two readings."""
        counts = [reading[self._endpoint.model].inference_stats.fail.count for reading in (before, after)]
        return int(counts[1] - counts[0])

    def step_times(self, before: dict[str, Any], after: dict[str, Any]) -> list[StepTime]:
        """The times of each step between two readings, in the order in which the data flows."""
        return [step_time(name, before[name], after[name]) for name in self._steps]

    def _call(self, method: Any, name: str) -> Any:
        try:
            return method(name, headers=self._connection.headers, client_timeout=TIMEOUT_S)
        except InferenceServerException as error:
            raise from_transport(
                error,
                url=self._endpoint.url,
                model=name,
                timeout_s=TIMEOUT_S,
                uses_tls=self._connection.uses_tls,
            ) from error


def step_time(name: str, before: Any, after: Any) -> StepTime:
    """Time of a step between two readings of its counters (inference.ModelStatistics)."""

    def increase(field: str) -> tuple[int, float]:
        durations = [getattr(reading.inference_stats, field) for reading in (before, after)]
        return durations[1].count - durations[0].count, (durations[1].ns - durations[0].ns) / 1e6

    (queued, queue_ms), (computed, infer_ms) = increase("queue"), increase("compute_infer")
    copies_ms = increase("compute_input")[1] + increase("compute_output")[1]
    batches = after.execution_count - before.execution_count
    images = after.inference_count - before.inference_count
    compute_ms = infer_ms + copies_ms
    return StepTime(name, queue_ms / max(queued, 1), compute_ms / max(computed, 1), images / max(batches, 1))
