"""What a Python step tells at Triton's metrics endpoint, beside what Triton tells of every model.

Imported inside Triton's Python stub only. One call costs about 25 microseconds: the stub passes it on
to the server. A family is kept for as long as its metrics, which go with it.
"""

from collections.abc import Iterable
from typing import Any

import triton_python_backend_utils as pb_utils

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
FOUND = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)


class StepMetrics:
    """The metrics of one model, which all of its instances share.

    Args:
        counted: the output that holds how many an image has, such as ``num_detections``.
    """

    def __init__(self, model: str, counted: str = "") -> None:
        self._labels = {"model": model}
        kinds = pb_utils.MetricFamily
        self._cpu_bytes = _family(
            "rcnn_cpu_tensor_bytes_total",
            "Bytes of tensors that reached a step on a GPU by way of the CPU",
            kinds.COUNTER,
        )
        self._rejected = _family(
            "rcnn_rejected_requests_total",
            "Requests that a step answered with INVALID_ARGUMENT, by reason",
            kinds.COUNTER,
        )
        self._seconds = _family(
            "rcnn_execution_seconds",
            "Time that a step took for one execution, which may be for several requests",
            kinds.HISTOGRAM,
        )
        self._execution = self._seconds.Metric(labels=self._labels, buckets=list(SECONDS))
        self._reasons: dict[str, Any] = {}
        self._cpu_counter: Any = None
        self._counts: Any = None
        if counted:
            what = counted.removeprefix("num_")
            self._found = _family(f"rcnn_{what}_per_image", f"How many {what} an image has", kinds.HISTOGRAM)
            self._counts = self._found.Metric(labels=self._labels, buckets=list(FOUND))

    def took(self, seconds: float) -> None:
        """An execution has ended."""
        self._execution.observe(seconds)

    def found(self, counts: Iterable[int]) -> None:
        """So many were found in each image."""
        for count in counts:
            self._counts.observe(float(count))

    def watch_cpu_bytes(self) -> None:
        """The model is on a GPU: from now on it tells what reached it by way of the CPU, 0 at first."""
        self._cpu_counter = self._cpu_bytes.Metric(labels=self._labels)

    def came_by_cpu(self, num_bytes: int) -> None:
        """So many bytes reached the model by way of the CPU."""
        if self._cpu_counter is not None:
            self._cpu_counter.increment(num_bytes)

    def rejected(self, reason: str) -> None:
        """A request was refused; ``reason`` is one of a few, for each is a time series."""
        if reason not in self._reasons:
            self._reasons[reason] = self._rejected.Metric(labels={**self._labels, "reason": reason})
        self._reasons[reason].increment(1)


def _family(name: str, description: str, kind: Any) -> Any:
    return pb_utils.MetricFamily(name=name, description=description, kind=kind)
