"""`Detector` over a real gRPC connection: answers, overrides, lists, threads."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from rcnn_client import BatchError, Detection, Detector, InvalidImageError, InvalidParameterError


def test_one_picture(server, png):
    with Detector(server.url) as detector:
        found = detector.detect(png(3))
    assert len(found) == 3
    assert found.boxes.dtype == np.float32 and found.boxes.tolist() == [[0, 0, 40, 30]] * 3
    assert found.scores.dtype == np.float32 and found.scores.tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert found.labels.dtype == np.int64 and found.labels.tolist() == [3, 3, 3]
    assert found.class_names == ["class 3"] * 3
    first = next(iter(found))
    assert first == Detection("class 3", pytest.approx(0.9), (0, 0, 40, 30), 3)
    found.boxes[:, 0] += 1  # the memory is the caller's own


def test_no_detection_is_an_answer(server, png):
    with Detector(server.url) as detector:
        found = detector.detect(png(0))
    assert len(found) == 0 and list(found) == [] and found.class_names == []
    assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.labels.shape == (0,)


def test_files_and_bytes_are_sent_as_they_are(server, tmp_path):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (64, 48), (7, 7, 7)).save(buffer, "JPEG", exif=exif)
    path = tmp_path / "photo.jpg"
    path.write_bytes(buffer.getvalue() + b"\0\0")  # trailing zeros, which a NumPy string type would drop
    with Detector(server.url) as detector:
        for image in (str(path), path, path.read_bytes()):
            detector.detect(image)
    assert server.sent_bytes() == [path.read_bytes()] * 3


def test_overrides_travel_as_request_parameters(server, png):
    with Detector(server.url) as detector:
        detector.detect(png(1))
        found = detector.detect(
            png(1), score_thresh=0.5, nms_thresh=np.float32(0.25), detections_per_img=np.int64(1)
        )
        assert len(detector.detect_batch([png(1)], score_thresh=0)[0]) == 3
    assert found.scores.tolist() == pytest.approx([0.9])
    plain, overridden, in_list = (dict(request.parameters) for request in server.requests)
    assert plain == {}
    assert overridden.keys() == {"score_thresh", "nms_thresh", "detections_per_img"}
    assert overridden["score_thresh"].double_param == 0.5
    assert overridden["nms_thresh"].double_param == 0.25
    assert overridden["detections_per_img"].int64_param == 1
    assert in_list["score_thresh"].WhichOneof("parameter_choice") == "double_param"


@pytest.mark.parametrize(
    "override",
    [
        {"score_thresh": -0.1},
        {"score_thresh": float("nan")},
        {"nms_thresh": 1.5},
        {"detections_per_img": 0},
        {"detections_per_img": 101},
    ],
)
def test_an_override_outside_its_range_sends_nothing(server, png, override):
    ((name, value),) = override.items()
    with (
        Detector(server.url) as detector,
        pytest.raises(InvalidParameterError, match=f"{name} is {value}, expected"),
    ):
        detector.detect(png(1), **override)
    assert server.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "http://localhost:8001"},
        {"model": ""},
        {"timeout_s": 0},
        {"timeout_s": float("inf")},
        {"timeout_s": float("nan")},
        {"retries": -1},
        {"transport": "tcp"},
        {"headers": {"a b": "c"}},
        {"headers": {"a": "c\n"}},
        {"url": []},
        {"url": ["localhost:8001", "localhost"]},
    ],
)
def test_constructor_arguments_are_checked(arguments):
    with pytest.raises(InvalidParameterError, match=next(iter(arguments))):
        Detector(**arguments)


def test_a_list_keeps_its_order_and_runs_concurrently(server, png):
    server.delay_s = lambda label: 0.25 if label % 2 else 0.05  # the first answers come last
    labels = list(range(1, 17))
    with Detector(server.url) as detector:
        begin = time.monotonic()
        answers = detector.detect_batch([png(label) for label in labels], in_flight=4)
        took_s = time.monotonic() - begin
    assert [found.labels[0] for found in answers] == labels
    assert server.most_in_flight == 4
    assert took_s < 0.8 * 8 * (0.25 + 0.05)


def test_a_tuple_of_mixed_kinds_and_an_empty_list(server, png, tmp_path):
    (tmp_path / "one.png").write_bytes(png(1))
    array = np.full((20, 10, 3), 4, np.uint8)
    with Detector(server.url) as detector:
        answers = detector.detect_batch(
            (str(tmp_path / "one.png"), png(2), Image.open(io.BytesIO(png(3))), array)
        )
        assert detector.detect_batch([]) == []
    assert [found.labels[0] for found in answers] == [1, 2, 3, 4]
    assert answers[3].boxes[0].tolist() == [0, 0, 10, 20]


def test_a_bad_picture_in_a_list_does_not_affect_the_others(server, png, tmp_path):
    images = [png(1), b"no picture", tmp_path / "missing.jpg", png(4), 5, png(6)]
    with Detector(server.url) as detector, pytest.raises(BatchError) as caught:
        detector.detect_batch(images, in_flight=2)
    results, errors = caught.value.results, caught.value.errors
    assert [found and int(found.labels[0]) for found in results] == [1, None, None, 4, None, 6]
    assert list(errors) == [1, 2, 4] and all(
        isinstance(error, InvalidImageError) for error in errors.values()
    )
    assert "not an image" in str(errors[1])
    assert str(errors[2]) == f"{tmp_path}/missing.jpg: cannot be read: No such file or directory"
    assert str(caught.value).startswith("3 of 6 images failed\nimages[1]: ")


def test_a_long_list_of_failures_is_shortened_and_counted(server):
    with Detector(server.url) as detector, pytest.raises(BatchError, match=r"and 15 more \(see \.errors\)"):
        detector.detect_batch([b"x"] * 20)


def test_the_same_lazily_loaded_picture_many_times(server, png):
    image = Image.open(io.BytesIO(png(9, size=(800, 600))))
    with Detector(server.url) as detector:
        assert all(found.labels[0] == 9 for found in detector.detect_batch([image] * 24))


def test_threads_share_a_detector(server, png):
    server.delay_s = lambda label: 0.001 * (label % 7)

    def ask(label: int) -> bool:
        return detector.detect(png(label)).labels.tolist() == [label] * 3

    with Detector(server.url) as detector, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(1, 201)))


def test_arrays_arrive_without_loss(server):
    array = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    array[0, 0] = 1
    with Detector(server.url) as detector:
        detector.detect(array)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(server.sent_bytes()[0]))), array)


def test_arrays_are_sent_as_they_are_where_the_server_takes_pixels(server, png):
    server.add_pixels_model()
    array = np.random.default_rng(0).integers(0, 200, (37, 53, 3), np.uint8)
    arrays = [array, array[::2, ::-3], np.asfortranarray(array), array[:, :, 0], array[:, :, :1]]
    with Detector(server.url) as detector:
        for each in arrays:
            detector.detect(each)
        detector.detect(png(1))
    for came, sent in zip(server.sent_pixels(), arrays, strict=True):
        expected = sent if sent.ndim == 3 else sent[:, :, None]
        assert np.array_equal(came, np.broadcast_to(expected, (*sent.shape[:2], 3)))
    assert [request.model_name for request in server.requests] == ["faster_rcnn_pixels"] * 5 + ["faster_rcnn"]
    assert len(server.metadata) == 6 + 2  # each of the two configs is requested once


def test_a_detector_that_takes_both_gets_each_as_it_is(server, png):
    server.add_pixels_model()
    both = server.configs["faster_rcnn_pixels"]
    both.input.add().CopyFrom(server.configs["faster_rcnn"].input[0])
    for tensor in both.input:
        tensor.optional = True
    with Detector(server.url, "faster_rcnn_pixels") as detector:
        assert detector.detect(np.full((4, 4, 3), 9, np.uint8)).labels[0] == 9
    assert len(server.sent_pixels()) == 1 and len(server.metadata) == 2  # one config, one picture


def test_another_model_of_that_name_gets_no_pixels(server):
    server.add_pixels_model()
    del server.configs["faster_rcnn_pixels"].output[:]
    with Detector(server.url) as detector:
        assert detector.detect(np.full((4, 4, 3), 9, np.uint8)).labels[0] == 9
    assert server.requests[0].model_name == "faster_rcnn"


def test_classes_and_top_k_are_kept_by_the_client(server, png):
    with Detector(server.url) as detector:
        assert len(detector.detect(png(7), classes=["class 7", "class 8"])) == 3
        assert len(detector.detect(png(7), classes={"class 8"})) == 0
        assert len(detector.detect(png(7), classes=[])) == 0
        best = detector.detect(png(7), top_k=2, classes=("class 7",))
        assert best.scores.tolist() == pytest.approx([0.9, 0.6]) and best.class_names == ["class 7"] * 2
        assert best.boxes.shape == (2, 4) and best.labels.tolist() == [7, 7]
        for options, reason in [
            ({"classes": ["class 7", "cat"]}, "classes has 'cat', expected some of: class 1, class 2"),
            ({"classes": ["__background__"]}, "classes has '__background__'"),
            ({"classes": "class 7"}, "expected a list of names"),
            ({"classes": 7}, "expected a list of names"),
            ({"top_k": 0}, "top_k is 0, expected an integer, at least 1"),
            ({"top_k": 1.5}, "top_k is 1.5, expected an integer"),
            ({"detections_per_img": "3"}, "detections_per_img is '3', expected an integer"),
            ({"score_thresh": "0.5"}, "score_thresh is '0.5', expected a number from 0 to 1"),
            ({"timeout_s": 0}, "timeout_s is 0, expected a positive"),
            ({"timeout_s": "5"}, "timeout_s is '5', expected a positive"),
            ({"request_id": 5}, "request_id is 5, expected a string"),
        ]:
            with pytest.raises(InvalidParameterError, match=reason):
                detector.detect(png(7), **options)


@pytest.mark.parametrize("method", ["detect", "detect_batch", "detect_stream"])
def test_an_unknown_option_names_the_known_ones(method):
    with Detector("localhost:1") as detector, pytest.raises(TypeError) as caught:
        getattr(detector, method)([], threshold=0.5, conf=1)
    assert str(caught.value) == (
        "unknown option threshold, conf: the options are score_thresh, nms_thresh, detections_per_img, classes, "
        "top_k, masks, mask_thresh, timeout_s, request_id; detect_batch, detect_stream and detect_tiled also take in_flight"
    )


def test_an_opencv_frame_with_its_channels_reversed_arrives_as_rgb(server):
    server.add_pixels_model()
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[:] = (0, 0, 9)  # red in OpenCV's BGR order
    with Detector(server.url) as detector:
        assert detector.detect(frame[:, :, ::-1])[0].class_name == "class 9"


def test_request_ids(server, png):
    with Detector(server.url) as detector:
        detector.detect(png(1))
        detector.detect(png(1), request_id="mine")
        detector.detect_batch([png(1), png(2)], request_id="job", in_flight=1)
    assert [request.id for request in server.requests] == ["", "mine", "job-0", "job-1"]


def test_a_call_has_its_own_deadline_and_every_call_the_headers(server, png):
    with Detector(server.url, timeout_s=60, headers={"Authorization": "Bearer 42"}) as detector:
        detector.detect(png(1), timeout_s=5)
        detector.detect_batch([png(1)], timeout_s=20)
    assert 4 < server.seconds_left[1] < 6 and 19 < server.seconds_left[2] < 21
    assert [sent["authorization"] for sent in server.metadata] == ["Bearer 42"] * 3


def test_a_detector_on_a_relative_path(server, png, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(png(2))
    with Detector(server.url) as detector:
        assert detector.detect("photo.png").labels[0] == 2
