"""A detector with random weights finds objects: nothing saturates, few scores tie, and rounding is not amplified."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.photos import load_photo
from rcnn_export.verify.reference import Trace, run_reference

MODEL = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector(MODEL, "random")


@pytest.fixture(scope="module")
def trace(detector: Detector) -> Trace:
    return run_reference(detector.model, [np.asarray(load_photo("chelsea"))])


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_same_weights_whatever_the_number_of_threads(detector: Detector, one_thread: None) -> None:
    assert load_detector(MODEL, "random").weights_hash == detector.weights_hash


def test_scores_and_boxes_vary(trace: Trace) -> None:
    scores = trace.rpn_boxes[0, :, 0]
    assert len(np.unique(scores)) > 0.99 * len(scores) and scores.max() < 0.9999
    sides = trace.rpn_boxes[0, :, 3:5] - trace.rpn_boxes[0, :, 1:3]
    assert sides.max() < 5000
    (found,) = trace.detections
    assert len(found.scores) >= 20 and len(np.unique(found.labels)) >= 5


def test_rounding_is_not_amplified(detector: Detector, trace: Trace) -> None:
    precise = copy.deepcopy(detector.model.backbone).double()
    with torch.no_grad():
        features = list(precise(torch.from_numpy(trace.input).double()).values())
    for ours, exact in zip(trace.features, features, strict=False):
        assert np.abs(ours - exact.numpy()).max() < 5e-6 * exact.abs().max()
