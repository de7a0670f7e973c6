"""`aio.Detector` over a real gRPC connection; its streams are in test_client_stream.py."""

import asyncio
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rcnn_client import (
    BatchError,
    DeadlineExceededError,
    DetectorClosedError,
    InvalidImageError,
    ServerUnavailableError,
    _base,
    aio,
)
from rcnn_client._shm import Region


def test_every_kind_of_picture(server, png, tmp_path):
    (tmp_path / "one.png").write_bytes(png(1))
    array = np.full((20, 10, 3), 4, np.uint8)
    images = [tmp_path / "one.png", png(2), Image.open(io.BytesIO(png(3))), array]

    async def run():
        async with aio.Detector(server.url) as detector:
            alone = [await detector.detect(image, score_thresh=0.5) for image in images]
            return alone, await detector.detect_batch(images, top_k=1)

    alone, batch = asyncio.run(run())
    assert [found.labels.tolist() for found in alone] == [[1, 1], [2, 2], [3, 3], [4, 4]]
    assert [found.labels.tolist() for found in batch] == [[1], [2], [3], [4]]


def test_calls_run_together(server, png):
    server.delay_s = lambda label: 0.2

    async def run():
        async with aio.Detector(server.url) as detector:
            begin = time.monotonic()
            found = await asyncio.gather(*(detector.detect(png(label)) for label in range(1, 21)))
            return [each.labels[0] for each in found], time.monotonic() - begin

    labels, took_s = asyncio.run(run())
    assert labels == list(range(1, 21)) and took_s < 2


def test_errors(server, png):
    server.delay_s = lambda label: 2.0 if label == 9 else 0.0

    async def run():
        async with aio.Detector(server.url) as detector:
            with pytest.raises(InvalidImageError, match="not an image"):
                await detector.detect(b"no picture")
            with pytest.raises(DeadlineExceededError, match=r"within 0\.3 s"):
                await detector.detect(png(9), timeout_s=0.3)
            with pytest.raises(BatchError) as caught:
                await detector.detect_batch([png(1), b"no picture"])
            assert caught.value.results[0].labels[0] == 1 and list(caught.value.errors) == [1]
        async with aio.Detector("127.0.0.1:1", retries=1) as nobody:
            with pytest.raises(ServerUnavailableError):
                await nobody.detect(png(1))
            assert not await nobody.is_ready()

    asyncio.run(run())


def test_retries_go_to_the_other_server(server, other_server, png):
    server.stop()

    async def run():
        async with aio.Detector([server.url, other_server.url]) as detector:
            return await detector.detect_batch([png(label) for label in range(1, 21)], in_flight=4)

    assert [found.labels[0] for found in asyncio.run(run())] == list(range(1, 21))
    server.start()


def test_a_cancelled_task_is_cancelled(server, png):
    server.delay_s = lambda label: 2.0

    async def run():
        async with aio.Detector(server.url) as detector:
            begin = time.monotonic()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(detector.detect(png(1)), 0.3)
            assert time.monotonic() - begin < 1

    asyncio.run(run())


def test_closing_ends_running_calls(server, png):
    server.delay_s = lambda label: 2.0

    async def run():
        detector = aio.Detector(server.url)
        call = asyncio.create_task(detector.detect(png(1)))
        await asyncio.sleep(0.3)
        await detector.close()
        begin = time.monotonic()
        with pytest.raises(DetectorClosedError):
            await call
        assert time.monotonic() - begin < 1
        with pytest.raises(DetectorClosedError):
            await detector.detect(png(1))
        await detector.close()

    asyncio.run(run())


def slowed(function):
    """The function, made 0.3 s slower; other threads run meanwhile."""

    def slow(*args):
        time.sleep(0.3)
        return function(*args)

    return slow


async def longest_pause_s(call):
    """The longest time for which the call blocked the event loop."""
    pauses = []

    async def beat():
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            pauses.append(time.monotonic() - last)
            last = time.monotonic()

    heart = asyncio.create_task(beat())
    await asyncio.sleep(0.02)
    await call
    heart.cancel()
    return max(pauses)


def test_copies_of_large_pictures_do_not_block_the_event_loop(server, monkeypatch):
    server.add_pixels_model()
    array = np.full((700, 700, 3), 4, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "BMP")
    for name in ("pixels_input", "encoded_input"):
        monkeypatch.setattr(_base, name, slowed(getattr(_base, name)))

    async def run():
        async with aio.Detector(server.url) as detector:
            return [await longest_pause_s(detector.detect(image)) for image in (array, buffer.getvalue())]

    assert max(asyncio.run(run())) < 0.25


def test_shared_memory_is_made_and_filled_without_blocking_the_event_loop(server, monkeypatch):
    server.add_pixels_model()
    monkeypatch.setattr(_base, "Region", slowed(_base.Region))
    monkeypatch.setattr(Region, "write", slowed(Region.write))

    async def run():
        async with aio.Detector(server.url, transport="shm") as detector:
            return await longest_pause_s(detector.detect(np.full((700, 700, 3), 4, np.uint8)))

    assert asyncio.run(run()) < 0.25


def test_a_cancelled_task_leaves_no_shared_memory_and_gives_none_back_during_a_write(server, monkeypatch):
    server.add_pixels_model()
    events = []

    def write(region, pixels):
        time.sleep(0.3)
        events.append("written")

    async def cancel_after(detector, delay_s):
        task = asyncio.create_task(detector.detect(np.full((700, 700, 3), 4, np.uint8)))
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def run():
        async with aio.Detector(server.url, transport="shm") as detector:
            await detector.detect(np.full((4, 4, 3), 4, np.uint8))
            monkeypatch.setattr(_base, "Region", slowed(Region))
            await cancel_after(detector, 0.1)
            assert not list(Path("/dev/shm").glob(f"rcnn_client_{os.getpid()}_*"))
            monkeypatch.setattr(_base, "Region", Region)
            monkeypatch.setattr(Region, "write", write)
            give_back = detector._regions.give_back
            monkeypatch.setattr(
                detector._regions, "give_back", lambda *args: events.append("given back") or give_back(*args)
            )
            await cancel_after(detector, 0.15)

    asyncio.run(run())
    assert events == ["written", "given back"]
