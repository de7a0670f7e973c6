"""The metrics that a Python step adds to those that Triton reports for every model.

Imported inside Triton's Python stub only. Each call costs about 25 microseconds, because the stub passes
it on to the server. A metric disappears when Python frees its family, so the families are kept.
"""

from collections.abc import Iterable
from typing import Any

import triton_python_backend_utils as pb_utils

SECONDS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
COUNT_BUCKETS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)


class StepMetrics:
    """The metrics of one model, which all of its instances share.

    Args:
        counted: the output that holds a count for each image, such as ``num_detections``; empty if
            there is none to report.
    """

    def __init__(self, model: str, counted: str = "") -> None:
        self._labels = {"model": model}
        kinds = pb_utils.MetricFamily
        self._cpu_bytes = _family(
            "rcnn_cpu_tensor_bytes_total",
            "Bytes of tensors that reached a step on a GPU through CPU memory",
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
        self._execution = self._seconds.Metric(labels=self._labels, buckets=list(SECONDS_BUCKETS))
        self._reasons: dict[str, Any] = {}
        self._cpu_counter: Any = None
        self._counts: Any = None
        if counted:
            what = counted.removeprefix("num_")
            self._per_image = _family(
                f"rcnn_{what}_per_image", f"How many {what} an image has", kinds.HISTOGRAM
            )
            self._counts = self._per_image.Metric(labels=self._labels, buckets=list(COUNT_BUCKETS))

    def observe_execution(self, seconds: float) -> None:
        """Adds the time that one execution took."""
        self._execution.observe(seconds)

    def observe_counts(self, counts: Iterable[int]) -> None:
        """Adds each image's value of the output ``counted``."""
        for count in counts:
            self._counts.observe(float(count))

    def watch_cpu_bytes(self) -> None:
        """Starts to report, at 0, the bytes that reach a model on a GPU through CPU memory."""
        self._cpu_counter = self._cpu_bytes.Metric(labels=self._labels)

    def count_cpu_bytes(self, num_bytes: int) -> None:
        """Adds bytes that reached the model through CPU memory."""
        if self._cpu_counter is not None:
            self._cpu_counter.increment(num_bytes)

    def count_rejection(self, reason: str) -> None:
        """Adds a request that was refused. There are only a few reasons, because each is a time series."""
        if reason not in self._reasons:
            self._reasons[reason] = self._rejected.Metric(labels={**self._labels, "reason": reason})
        self._reasons[reason].increment(1)


def _family(name: str, description: str, kind: Any) -> Any:
    return pb_utils.MetricFamily(name=name, description=description, kind=kind)
