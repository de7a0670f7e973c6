"""Each way in which a server or a model can fail has its own exception, and every call has a deadline."""

import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import rcnn_client
from rcnn_client import (
    BatchError,
    DeadlineExceededError,
    Detector,
    DetectorClosedError,
    InvalidImageError,
    ModelNotFoundError,
    NotADetectorError,
    RcnnError,
    ServerError,
    ServerUnavailableError,
)
from rcnn_client._connection import Connection


def test_the_public_names_are_sorted_and_all_errors_have_one_base_class():
    assert rcnn_client.__all__ == sorted(rcnn_client.__all__)
    public = {name: getattr(rcnn_client, name) for name in rcnn_client.__all__}
    errors = [thing for thing in public.values() if inspect.isclass(thing) and issubclass(thing, Exception)]
    assert len(errors) == 13 and all(issubclass(error, RcnnError) for error in errors)


def test_every_call_has_a_deadline(server, png):
    with Detector(server.url, timeout_s=9) as detector:
        detector.detect(png(1))
        detector.detect_batch([png(1), png(2)])
    assert len(server.seconds_left) == 4  # the model's config once, then three pictures
    assert all(8 < seconds < 10 for seconds in server.seconds_left)


def test_a_late_answer(server, png):
    server.delay_s = lambda label: 2.0 if label == 2 else 0.0
    with Detector(server.url, timeout_s=0.3) as detector:
        detector.detect(png(1))
        begin = time.monotonic()
        with pytest.raises(DeadlineExceededError, match=r"within 0\.3 s.*timeout_s"):
            detector.detect(png(2))
        assert time.monotonic() - begin < 1
        with pytest.raises(BatchError) as caught:
            detector.detect_batch([png(2), png(3)])
    assert isinstance(caught.value.errors[0], DeadlineExceededError)
    assert caught.value.results[1].labels[0] == 3


def test_nobody_listens(png):
    with Detector("127.0.0.1:1") as detector:
        with pytest.raises(ServerUnavailableError, match=r"127\.0\.0\.1:1 .*8001"):
            detector.detect(png(1))
        with pytest.raises(ServerUnavailableError):  # one error for the batch, not one for each picture
            detector.detect_batch([png(1), png(2)])


def test_an_unknown_model(server, png):
    with Detector(server.url, "mask_rcnn") as detector, pytest.raises(ModelNotFoundError, match="mask_rcnn"):
        detector.detect(png(1))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, ServerUnavailableError),
        (grpc.StatusCode.CANCELLED, ServerUnavailableError),
        (grpc.StatusCode.NOT_FOUND, ModelNotFoundError),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidImageError),
        (grpc.StatusCode.INTERNAL, ServerError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ServerError),
    ],
)
def test_what_the_server_says_reaches_the_caller(server, png, tmp_path, status, error):
    server.status = (status, "the reason is 42")
    (tmp_path / "photo.png").write_bytes(png(1))
    with (
        Detector(server.url) as detector,
        pytest.raises(error, match=r"photo\.png: .*the reason is 42") as caught,
    ):
        detector.detect(tmp_path / "photo.png")
    assert type(caught.value) is error


def _rename_input(config):
    config.input[0].name = "pixels"


def _drop_output(config):
    del config.output[3]


def _retype_output(config):
    config.output[2].data_type = config.output[0].data_type


def _no_batching(config):
    config.max_batch_size = 0


def _no_class_names(config):
    del config.parameters["class_names"]


def _class_names_no_json(config):
    config.parameters["class_names"].string_value = "cat, dog"


def _class_names_no_list(config):
    config.parameters["class_names"].string_value = '{"1": "cat"}'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_rename_input, "takes {'pixels': 'TYPE_STRING'}"),
        (_drop_output, "expected {'image': 'TYPE_STRING'}, {'boxes': .* 'num_detections'"),
        (_retype_output, "'labels': 'TYPE_FP32'"),
        (_no_batching, "max_batch_size 0"),
        (_no_class_names, "has no class names"),
        (_class_names_no_json, "has no class names"),
        (_class_names_no_list, "has no class names"),
    ],
)
def test_a_model_that_is_no_detector(server, png, change, reason):
    change(server.configs["faster_rcnn"])
    with Detector(server.url) as detector, pytest.raises(NotADetectorError, match=reason):
        detector.detect(png(1))
    assert server.requests == []


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda tensors: tensors.pop("scores"), "'scores': None"),
        (lambda tensors: tensors.update(boxes=np.zeros((1, 50, 4), np.float32)), r"'boxes': \(1, 50, 4\)"),
        (lambda tensors: tensors["num_detections"].fill(101), "num_detections 101"),
        (lambda tensors: tensors["num_detections"].fill(-1), "num_detections -1"),
        (lambda tensors: tensors["labels"].fill(999), "labels below 201"),
        (lambda tensors: tensors["num_detections"].fill(5), "-1"),  # padding counted as real: label -1
    ],
)
def test_an_answer_that_breaks_the_contract(server, png, spoil, reason):
    server.spoil = spoil
    with Detector(server.url) as detector, pytest.raises(ServerError, match=reason):
        detector.detect(png(1))


def test_a_closed_detector(server, png):
    detector = Detector(server.url)
    detector.detect(png(1))
    detector.close()
    detector.close()
    with pytest.raises(DetectorClosedError):
        detector.detect(png(1))


def test_closing_closes_a_connection_that_is_being_opened(server, png, monkeypatch):
    opening, opened = threading.Event(), []
    open_connection = Connection.open

    def open_slowly(self, client_class, endpoint):
        opening.set()
        time.sleep(0.3)
        client = open_connection(self, client_class, endpoint)
        close = client.close
        monkeypatch.setattr(client, "close", lambda: opened.remove(client) or close())
        opened.append(client)
        return client

    monkeypatch.setattr(Connection, "open", open_slowly)
    detector = Detector(server.url)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(detector.detect, png(1))
        opening.wait()
        detector.close()
        assert isinstance(call.exception(), DetectorClosedError)
    assert opened == []


def test_closing_ends_running_calls(server, png):
    server.delay_s = lambda label: 3.0
    detector = Detector(server.url)
    begin = time.monotonic()
    threading.Timer(0.3, detector.close).start()
    with pytest.raises(DetectorClosedError):
        detector.detect(png(1))
    assert time.monotonic() - begin < 2
