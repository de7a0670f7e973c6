"""`Detections` as a sequence, as printed, and converted for the package supervision."""

import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from rcnn_client import Detection, Detections, RcnnError, ServerError
from rcnn_client._results import Result


@pytest.fixture
def found() -> Detections:
    return Detections(
        np.array([[1, 2, 30, 40], [5, 6, 70, 80.6], [0, 0, 1, 1], [2, 2, 3, 3]], np.float32),
        np.array([0.98, 0.91, 0.5, 0.25], np.float32),
        np.array([1, 2, 1, 3]),
        ["dog", "cat", "dog", "emu"],
    )


def test_one_detection(found):
    assert found[3] == found[-1] == found[np.int64(3)] == Detection("emu", 0.25, (2, 2, 3, 3), 3)
    assert list(found) == [found[row] for row in range(4)]
    assert type(found[0].score) is float and type(found[0].label) is int and type(found[0].box[0]) is float


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(2), [0, 1]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        (slice(0, 0), []),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([-1, 0]), [3, 0]),
        ([True, False, False, True], [0, 3]),
        (np.array([0.98, 0.91, 0.5, 0.25]) > 0.6, [0, 1]),
    ],
)
def test_several_detections(found, index, rows):
    some = found[index]
    assert isinstance(some, Detections) and list(some) == [found[row] for row in rows]
    assert some.boxes.shape == (len(rows), 4) and some.labels.dtype == np.int64
    some.boxes[:] = 7  # the memory is its own
    assert found.boxes[0].tolist() == [1, 2, 30, 40]


@pytest.mark.parametrize("index", [4, -5, "boxes", 1.0, None, (0, 1), [True], np.zeros((2, 2), int)])
def test_what_selects_nothing(found, index):
    with pytest.raises(IndexError):
        found[index]


def test_print(found):
    assert repr(found) == (
        "<4 detections: dog 0.98 at 1,2,30,40; cat 0.91 at 5,6,70,81; dog 0.50 at 0,0,1,1; and 1 more>"
    )
    assert str(found[:1]) == "<1 detection: dog 0.98 at 1,2,30,40>"
    assert repr(found[:0]) == "<0 detections>"
    assert repr(Result("photo.jpg", found[:0])) == "<Result of photo.jpg: <0 detections>>"
    error: RcnnError = ServerError("out of memory")
    assert repr(Result(b"x" * 10**6, error)) == "<Result of bytes: ServerError('out of memory')>"


def test_to_supervision(found, monkeypatch):
    package = ModuleType("supervision")
    package.Detections = SimpleNamespace
    monkeypatch.setitem(sys.modules, "supervision", package)
    converted = found.to_supervision()
    assert vars(converted).keys() == {"xyxy", "confidence", "class_id", "mask", "tracker_id", "data"}
    assert converted.mask is None
    assert converted.xyxy is found.boxes and converted.confidence is found.scores
    assert converted.class_id is found.labels
    assert converted.data["class_name"].tolist() == ["dog", "cat", "dog", "emu"]
    assert found[:0].to_supervision().data["class_name"].dtype.kind == "U"


def test_to_supervision_with_masks(found, monkeypatch):
    package = ModuleType("supervision")
    package.Detections = SimpleNamespace
    monkeypatch.setitem(sys.modules, "supervision", package)
    masked = dataclasses.replace(
        found, mask_probabilities=np.ones((4, 28, 28), np.float16), image_size_hw=(90, 80)
    )
    mask = masked.to_supervision().mask
    assert mask.shape == (4, 90, 80) and mask.dtype == np.bool_
    assert np.array_equal(mask, masked.masks())


def test_masks_and_keypoints_go_with_their_detections(found):
    number = np.arange(4)
    full = dataclasses.replace(
        found,
        mask_probabilities=np.broadcast_to(number[:, None, None] / 4, (4, 28, 28)).astype(np.float16),
        image_size_hw=(90, 80),
        keypoints=np.broadcast_to(number[:, None, None], (4, 2, 3)).astype(np.float32),
        keypoint_scores=np.broadcast_to(number[:, None], (4, 2)).astype(np.float32),
        keypoint_names=["head", "tail"],
    )
    some = full[[2, 0]]
    assert some.mask_probabilities[:, 0, 0].tolist() == [0.5, 0]
    assert some.keypoints[:, 0, 0].tolist() == some.keypoint_scores[:, 1].tolist() == [2, 0]
    assert some.image_size_hw == (90, 80) and some.keypoint_names == ["head", "tail"]
    assert full[:0].masks().shape == (0, 90, 80) and full[:0].keypoints.shape == (0, 2, 3)
    assert np.array_equal(some.masks(0.3), full.masks(0.3)[[2, 0]])
    some.keypoints[:] = 7  # the memory is its own
    assert full.keypoints[2, 0, 0] == 2


def test_supervision_is_not_installed(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r"is not installed: pip install supervision$"):
        found.to_supervision()
