"""Finds out which layers must stay in FP32, so that INT8 loses no more average precision than is allowed."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnn_export.engines.quantize import quantize
from rcnn_export.errors import ExportError
from rcnn_export.repository.average_precision import (
    AnnotatedPictures,
    Aps,
    describe,
    largest_loss,
    measure_aps,
)
from rcnn_export.repository.calibrate import Ranges
from rcnn_export.repository.sensitivity import Graphs, load_graphs, rank_layers


@dataclass(frozen=True)
class Quantization:
    """A detector that is about to become INT8.

    Attributes:
        repository: contains the configs of the detector ``name``.
        graphs, ranges: of its networks, by step.
        layers: all layers that can be INT8.
        kept: the layers that always stay in FP32.
    """

    repository: Path
    name: str
    graphs: Graphs
    ranges: Ranges
    layers: Sequence[str]
    kept: Collection[str]


def reach_goal(
    trial: Quantization,
    most_loss: float,
    pictures: Sequence[npt.NDArray[np.uint8]],
    annotated: AnnotatedPictures,
    report: Callable[[str], None],
) -> tuple[set[str], dict[str, Any]]:
    """Keeps the costliest layers in FP32. Their number is minimised by doubling and then halving.

    Args:
        most_loss: points of AP.
        pictures: uint8 RGB [h, w, 3], on which the layers are ranked.

    Returns:
        all layers that stay in FP32, and the manifests' entry about the AP.

    Raises:
        ExportError: not even a single layer can be INT8, or the AP of the FP32 detector is not above the allowed loss.
    """
    report(f"Measuring AP on {len(annotated.samples)} annotated pictures")
    expected = measure_aps(load_graphs(trial.repository, trial.name, trial.graphs), annotated, report)
    report(f"FP32: {describe(expected)}")
    if min(expected.values()) <= most_loss:
        raise ExportError(
            f"in FP32 the detector has {describe(expected)}, which is no more than --most-ap-loss {most_loss:g}: give "
            "--annotations of what it detects, or allow less"
        )
    ranking: list[str] = []
    measured: dict[int, Aps] = {}

    def holds(count: int) -> bool:
        """Whether INT8 with ``count`` of the costliest layers in FP32 loses at most ``most_loss``."""
        kept = {*trial.kept, *ranking[:count]}
        graphs = {step: quantize(graph, trial.ranges[step], kept) for step, graph in trial.graphs.items()}
        aps = measured[count] = measure_aps(
            load_graphs(trial.repository, trial.name, graphs), annotated, report
        )
        loss = largest_loss(expected, aps)
        floats = f"{len(kept)} of {len(trial.layers)} layers in FP32"
        report(f"INT8 with {floats}: {describe(aps)}; {max(loss, 0.0):.2f} points lost")
        return loss <= most_loss

    if not holds(0):
        report("Ranking the layers by the error of each alone in INT8")
        layers = [layer for layer in trial.layers if layer not in trial.kept]
        costs = rank_layers(
            trial.graphs, trial.ranges, layers, trial.repository, trial.name, pictures, report
        )
        ranking += [cost.layer for cost in costs]
    count = _fewest(len(ranking) - 1, holds) if ranking else 0
    if count is None:
        raise ExportError(
            f"INT8 loses more than {most_loss:g} points of AP even with a single layer in INT8: allow more with "
            "--most-ap-loss, calibrate on more pictures, or use --precision fp16 or fp32"
        )
    if count:
        report(f"Staying in FP32: {', '.join(ranking[:count])}")
    about = {"pictures": len(annotated.samples), "fp32": expected, "int8": measured[count]}
    return {*trial.kept, *ranking[:count]}, about


def _fewest(most: int, holds: Callable[[int], bool]) -> int | None:
    """A number from 1 to ``most`` for which ``holds`` is true, found by doubling and then halving; None if there is none
    among the numbers tried. If ``holds`` is true for all numbers from some number on, that number is returned.
    """
    too_few, count = 0, min(1, most)
    while count and not holds(count):
        if count == most:
            return None
        too_few, count = count, min(2 * count, most)
    while count - too_few > 1:
        middle = (too_few + count) // 2
        if holds(middle):
            count = middle
        else:
            too_few = middle
    return count or None
