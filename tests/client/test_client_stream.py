"""`detect_stream` of the sync and of the async detector: order, how much it holds, and how it handles errors."""

import asyncio
import threading
import time
from collections.abc import Iterable

import numpy as np
import pytest
from PIL import Image
from rcnn_client import (
    DeadlineExceededError,
    Detections,
    Detector,
    DetectorClosedError,
    InvalidImageError,
    InvalidParameterError,
    Result,
    ServerUnavailableError,
    aio,
)


def run_sync(
    url: str, images: Iterable, seen: list | None = None, stop_after: int = 0, pause_s: float = 0, **options
):
    """(image, label or error) of each result, up to `stop_after` results; added to `seen` as they arrive."""
    seen = [] if seen is None else seen
    with Detector(url) as detector:
        stream = detector.detect_stream(images, **options)
        for result in stream:
            seen.append(shorten(result))
            if len(seen) == stop_after:
                stream.close()
            time.sleep(pause_s)
    return seen


def run_async(
    url: str, images: Iterable, seen: list | None = None, stop_after: int = 0, pause_s: float = 0, **options
):
    seen = [] if seen is None else seen

    async def run():
        async with aio.Detector(url) as detector:
            stream = detector.detect_stream(images, **options)
            async for result in stream:
                seen.append(shorten(result))
                if len(seen) == stop_after:
                    await stream.aclose()
                await asyncio.sleep(pause_s)
        return seen

    return asyncio.run(run())


def run_async_iterable(url: str, images: Iterable, **options):
    async def one_after_the_other():
        for image in images:
            await asyncio.sleep(0)
            yield image

    return run_async(url, one_after_the_other(), **options)


def shorten(result: Result) -> tuple:
    return result.image, result.error or int(result.detections.labels[0])


each_detector = pytest.mark.parametrize("run", [run_sync, run_async, run_async_iterable])


@each_detector
def test_order_is_kept_and_in_flight_is_the_limit(server, png, run):
    server.delay_s = lambda label: 0.05 if label % 7 else 0.2
    images = [png(label) for label in range(1, 101)]
    seen = run(server.url, iter(images), in_flight=5)
    assert seen == list(zip(images, range(1, 101), strict=True))
    assert server.most_in_flight == 5


@each_detector
def test_it_reads_no_faster_than_answers_are_taken(server, png, run):
    seen, held = [], []

    def images():
        for label in range(1, 41):
            held.append(label - len(seen))
            yield png(label)

    run(server.url, images(), seen=seen, in_flight=3, pause_s=0.02)
    assert [label for _, label in seen] == list(range(1, 41))
    assert 1 < max(held) <= 2 * 3 + 1  # plus the one that the caller works on


@each_detector
def test_leaving_it_stops_reading(server, png, run):
    read = []

    def images():
        for label in range(1, 201):
            read.append(label)
            yield png(label)

    assert len(run(server.url, images(), in_flight=4, stop_after=5)) == 5
    time.sleep(0.1)
    assert len(read) <= 5 + 2 * 4 + 1
    assert len(server.requests) <= len(read)


@each_detector
def test_a_bad_picture_gets_its_error_and_the_others_their_boxes(server, png, run, tmp_path):
    images = [png(1), b"no picture", tmp_path / "missing.jpg", png(4), 5, png(6)]
    seen = run(server.url, images, in_flight=2)
    assert [image for image, _ in seen] == images
    answers = [answer for _, answer in seen]
    assert [answers[index] for index in (0, 3, 5)] == [1, 4, 6]
    assert all(isinstance(answers[index], InvalidImageError) for index in (1, 2, 4))
    assert str(answers[1]) == "image 1: in ensemble 'faster_rcnn', not an image"
    assert "missing.jpg: cannot be read" in str(answers[2])


@each_detector
def test_each_picture_has_its_own_deadline(server, png, run):
    server.delay_s = lambda label: 1.0 if label == 2 else 0.1
    seen = run(server.url, [png(label) for label in (1, 2, 3, 4, 5, 6)], in_flight=2, timeout_s=0.4)
    assert isinstance(seen[1][1], DeadlineExceededError)
    assert [answer for _, answer in seen if isinstance(answer, int)] == [1, 3, 4, 5, 6]


@each_detector
def test_an_error_of_the_iterable_is_raised_after_the_earlier_answers(server, png, run):
    got = []

    def images():
        for label in (1, 2, 3):
            yield png(label)
            got.append(label)
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"):
        run(server.url, images(), in_flight=2)
    assert got == [1, 2, 3] and len(server.requests) == 3


@each_detector
def test_an_error_that_concerns_no_picture_is_raised_at_once(run, server, png):
    with pytest.raises(ServerUnavailableError):
        run("127.0.0.1:1", [png(1), png(2)])
    with pytest.raises(InvalidParameterError, match="score_thresh"):
        run(server.url, [png(1)], score_thresh=2)


@pytest.mark.parametrize(
    "one", ["photo.jpg", b"bytes", np.zeros((2, 2, 3), np.uint8), Image.new("L", (1, 1))]
)
def test_one_picture_is_not_several(one):
    for detector in (Detector(), aio.Detector()):
        with pytest.raises(InvalidParameterError, match="detect takes one"):
            detector.detect_stream(one)
        with pytest.raises(InvalidParameterError, match="in_flight is 0, expected at least 1"):
            detector.detect_stream([], in_flight=0)


def test_a_slow_source_does_not_hold_answers_back(server, png):
    sent, got = [], []

    def camera():
        for label in range(1, 6):
            sent.append(label)
            time.sleep(0.3)
            yield png(label)

    with Detector(server.url) as detector:
        for result in detector.detect_stream(camera()):
            got.append(int(result.detections.labels[0]))
            assert len(sent) - len(got) <= 1 or len(sent) == 5
    assert got == [1, 2, 3, 4, 5]


def test_async_answers_come_before_the_next_picture_is_there(server, png):
    async def run():
        answered = asyncio.Event()

        async def conversation():
            yield png(1)
            await asyncio.wait_for(answered.wait(), 5)
            yield png(2)

        labels = []
        async with aio.Detector(server.url) as detector:
            async for result in detector.detect_stream(conversation()):
                labels.append(int(result.detections.labels[0]))
                answered.set()
        return labels

    assert asyncio.run(run()) == [1, 2]


def test_a_result_is_one_of_two():
    found = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), [])
    good, bad = Result("a", found), Result("b", InvalidImageError("b: broken"))
    assert good.detections is found and good.error is None
    assert bad.error is bad.answer
    with pytest.raises(InvalidImageError, match="b: broken"):
        assert bad.detections


def test_closing_the_detector_ends_the_stream_with_errors(server, png):
    server.delay_s = lambda label: 0.2
    detector = Detector(server.url)
    detector.detect(png(1))
    threading.Timer(0.3, detector.close).start()
    answers = [result.answer for result in detector.detect_stream([png(2)] * 20, in_flight=2)]
    assert isinstance(answers[-1], DetectorClosedError) and len(answers) == 20
