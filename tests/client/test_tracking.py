"""`Tracker`: ids that stay with their objects, and how outputs show them."""

import subprocess
import sys

import numpy as np
import pytest
from rcnn_client import Detections, InvalidParameterError, Tracker, draw_detections
from rcnn_client._draw_shapes import class_colour
from rcnn_client.tools.detect_outputs import as_json, table


def found(*objects: tuple[float, float, float], labels: tuple[int, ...] = ()) -> Detections:
    """Detections with boxes of 40x60 pixels; each object is (left, top, score)."""
    corners = np.array([(x, y, x + 40, y + 60) for x, y, _ in objects], np.float32).reshape(-1, 4)
    numbers = np.array(labels or [1] * len(objects), np.int64)
    names = [f"class {number}" for number in numbers]
    return Detections(corners, np.array([score for *_, score in objects], np.float32), numbers, names)


def ids(tracked: Detections) -> list[int]:
    assert tracked.track_ids is not None and tracked.track_ids.dtype == np.int64
    return tracked.track_ids.tolist()


def test_an_id_stays_with_its_object_whatever_its_place_among_the_others():
    tracker = Tracker()
    assert ids(tracker.update(found((10, 10, 0.9), (200, 10, 0.8)))) == [1, 2]
    assert ids(tracker.update(found((204, 10, 0.95), (14, 10, 0.7)))) == [2, 1]
    moved = tracker.update(found((400, 200, 0.99), (18, 10, 0.9), (208, 10, 0.85)))
    assert ids(moved) == [3, 1, 2]
    np.testing.assert_array_equal(moved.boxes[0], [400, 200, 440, 260])


def test_a_weak_box_continues_a_track_and_begins_none():
    tracker = Tracker(score_thresh=0.5)
    tracker.update(found((10, 10, 0.9)))
    tracked = tracker.update(found((12, 10, 0.2), (300, 10, 0.4)))
    assert ids(tracked) == [1] and tracked.scores == np.float32(0.2)
    assert ids(tracker.update(found((14, 10, 0.05)))) == []  # ByteTrack ignores scores this low
    assert ids(tracker.update(found((16, 10, 0.9)))) == [1]


def test_an_object_that_comes_back_keeps_its_id_for_lost_frames():
    for missing, number in ((5, 1), (6, 2)):
        tracker = Tracker(lost_frames=5)
        tracker.update(found((10, 10, 0.9)))
        for _ in range(missing):
            assert ids(tracker.update(found())) == []
        assert ids(tracker.update(found((10, 10, 0.9)))) == [number]


def test_an_object_of_another_class_keeps_its_id():
    tracker = Tracker()
    tracker.update(found((10, 10, 0.9), labels=(1,)))
    tracked = tracker.update(found((11, 10, 0.9), labels=(2,)))
    assert ids(tracked) == [1] and tracked.class_names == ["class 2"]


def test_an_object_found_as_two_classes_has_one_id():
    """Boxes of 40x60: at a distance of 12 pixels their IoU is 28/52 = 0.54, and at 15 pixels 25/55 = 0.45."""
    tracked = Tracker().update(found((10, 10, 0.7), (22, 10, 0.9), labels=(1, 2)))
    assert ids(tracked) == [1] and tracked.class_names == ["class 2"]
    assert ids(Tracker().update(found((10, 10, 0.9), (25, 10, 0.7), labels=(1, 2)))) == [1, 2]


def test_ids_of_one_video_begin_at_1():
    for _ in range(2):
        assert ids(Tracker().update(found((10, 10, 0.9)))) == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_thresh": 1.5}, r"score_thresh is 1\.5, expected a number from 0 to 1"),
        ({"lost_frames": -1}, "lost_frames is -1, expected 0 or more"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InvalidParameterError, match=message):
        Tracker(**arguments)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackforge", None)
    with pytest.raises(ModuleNotFoundError, match=r"trackforge.*pip install 'rcnn-client\[video\]'"):
        Tracker()


def test_the_client_does_not_import_it_unasked():
    code = "import sys, rcnn_client.tools.detect_cli; print('trackforge' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_rows_keep_their_ids_and_show_them():
    tracked = Tracker().update(found((10, 10, 0.9), (200, 10, 0.8)))
    assert ids(tracked[1:]) == [2] and tracked.titles() == ["class 1 #1", "class 1 #2"]
    assert "class 1 #2 0.80 at 200,10,240,70" in repr(tracked)
    assert "  class 1 #2  0.800    200.0     10.0    240.0     70.0" in table("clip.mp4#0", tracked)
    assert [each["track_id"] for each in as_json(tracked)] == [1, 2]
    assert "track_id" not in as_json(found((10, 10, 0.9)))[0]


def test_objects_of_a_class_are_drawn_in_a_colour_of_their_own():
    tracked = Tracker().update(found((10, 100, 0.9), (200, 100, 0.8)))
    drawn = np.asarray(draw_detections(np.zeros((200, 300, 3), np.uint8), tracked))
    assert tuple(drawn[159, 30]) == class_colour(1) and tuple(drawn[159, 220]) == class_colour(2)
