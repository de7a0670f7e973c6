"""Tiles on the sample detector in the real tritonserver: more is found, and the answers lie where the digits are."""

import asyncio
import importlib
from pathlib import Path

import numpy as np
import pytest
from rcnn_backend.server.local_server import RunningServer
from rcnn_client import Detector, aio

pytestmark = pytest.mark.xdist_group("client")

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_small_digits_in_a_large_picture(
    both_ensembles: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark, small: AP at least 0.1 above the untiled one, and one at a time finds the same."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("tiles")
    picture = benchmark.compose_large_picture((900, 1300))
    encoded = picture.encode()
    with Detector(both_ensembles.grpc_url, "digits") as detector:
        ways = benchmark.make_ways(detector, (480, 480), 0.35, 8, None, 0.05)
        benchmark.measure(ways, encoded, turns=1)
        assert len(benchmark.report(ways, picture).rows) == 3
        untiled, one, many = (benchmark.average_precision(picture, way.found) for way in ways)
        assert many > untiled + 0.1
        assert one == pytest.approx(many, abs=1e-3)

    async def detect_tiled():
        async with aio.Detector(both_ensembles.grpc_url, "digits") as detector:
            return await detector.detect_tiled(encoded, (480, 480), 0.35, score_thresh=0.5)

    found = asyncio.run(detect_tiled())
    assert np.isin(found.labels, picture.labels).all()
    assert (found.boxes >= 0).all() and (found.boxes <= [1300, 900, 1300, 900]).all()
    assert benchmark.average_precision(picture, found) > 0.5
