"""The asynchronous client.

>>> async with aio.Detector("localhost:8001") as detector:
...     async for result in detector.detect_stream(Path("photos").glob("*.jpg")):
...         print(result.image, result.error or len(result.detections))
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import tritonclient.grpc.aio as triton

from ._base import BaseDetector
from ._detections import Detections
from ._errors import RcnnError
from ._images import ImageInput
from ._info import DetectorInfo
from ._merge import MergeMethod, MergeMetric
from ._options import DetectOptions, Options, Request, read_options
from ._results import Result, check_in_flight, check_stream, gather, window
from ._steps import Call, Plan, Run, Sleep, Start, Step, Wait
from ._tiles import Tiling

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Detector"]

AnyImage = TypeVar("AnyImage", bound=ImageInput)
T = TypeVar("T")


class Detector(BaseDetector):
    """Like `rcnn_client.Detector`, with the same arguments, methods and errors; belongs to one event loop.

    If a task is cancelled, its request is cancelled. Files are read, and pictures encoded and copied, in threads.
    gRPC's own copies of a request are made in the event loop: for an array of 36 MB they take about 0.1 s. Large
    arrays are better sent with transport="shm", or encoded.
    """

    _client_class = triton.InferenceServerClient

    async def __aenter__(self) -> Detector:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls still running end with `DetectorClosedError`."""
        for client in self._take_clients():
            await client.close()
        await asyncio.to_thread(self._release)

    async def detect(self, image: ImageInput, **options: Unpack[DetectOptions]) -> Detections:
        """As `rcnn_client.Detector.detect`."""
        return await self._run(self._detect_one(image, read_options(options)))

    async def detect_batch(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        in_flight: int = 16,
        **options: Unpack[DetectOptions],
    ) -> list[Detections]:
        """As `rcnn_client.Detector.detect_batch`."""
        return gather([result async for result in self.detect_stream(images, in_flight=in_flight, **options)])

    def detect_stream(
        self,
        images: Iterable[AnyImage] | AsyncIterable[AnyImage],
        *,
        in_flight: int = 16,
        **options: Unpack[DetectOptions],
    ) -> AsyncGenerator[Result[AnyImage], None]:
        """As `rcnn_client.Detector.detect_stream`.

        `images` is read in a separate task. If it is not an async iterable, it is read in a thread.
        """
        check_stream(images, in_flight)
        return self._stream(images, in_flight, read_options(options))

    async def detect_tiled(
        self,
        image: ImageInput,
        tile_hw: Sequence[int],
        overlap: float = 0.2,
        *,
        whole: bool = True,
        merge: MergeMethod | None = None,
        merge_metric: MergeMetric | None = None,
        merge_thresh: float = 0.5,
        in_flight: int = 16,
        **options: Unpack[DetectOptions],
    ) -> Detections:
        """As `rcnn_client.Detector.detect_tiled`."""
        check_in_flight(in_flight)
        tiling = Tiling(tile_hw, overlap, whole, merge, merge_metric, merge_thresh)
        for_picture = read_options(options)
        for_tile = dataclasses.replace(for_picture, top_k=None)
        picture = await self._run(self._cut(image, tiling, for_tile))
        async with contextlib.aclosing(self._stream(picture.tiles, in_flight, for_tile)) as results:
            answers = [result.detections async for result in results]
        found = await asyncio.to_thread(picture.merge, answers)
        return found[: for_picture.top_k]

    async def is_ready(self, *, timeout_s: float | None = None) -> bool:
        """As `rcnn_client.Detector.is_ready`."""
        return await self._run(self._is_ready(timeout_s))

    async def info(self, *, timeout_s: float | None = None) -> DetectorInfo:
        """As `rcnn_client.Detector.info`."""
        return await self._run(self._info(timeout_s))

    async def _stream(
        self, images: Iterable[T] | AsyncIterable[T], in_flight: int, options: Options
    ) -> AsyncGenerator[Result[T], None]:
        request = await self._run(self._prepare(options, self._deadline(options.timeout_s)))
        held: asyncio.Queue[asyncio.Task[Result[T]] | None] = asyncio.Queue()
        free_places = asyncio.Semaphore(window(in_flight))
        at_server = asyncio.Semaphore(in_flight)

        async def read() -> None:
            try:
                index = 0
                async for image in _read_ahead(images, free_places):
                    held.put_nowait(asyncio.create_task(self._answer(image, index, request, at_server)))
                    index += 1
            finally:
                held.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await held.get()) is not None:
                result = await task
                free_places.release()
                yield result
            await reader
        finally:
            reader.cancel()
            while not held.empty():
                if task := held.get_nowait():
                    task.cancel()

    async def _answer(
        self, image: T, index: int, request: Request, at_server: asyncio.Semaphore
    ) -> Result[T]:
        async with at_server:
            try:
                return Result(image, await self._run(self._detect_in_stream(image, index, request)))
            except RcnnError as error:
                return Result(image, error)

    async def _run(self, plan: Plan[T]) -> T:
        """Carry out the plan in this task."""
        resume: Callable[[Any], Step] = plan.send
        value: Any = None
        while True:
            try:
                step = resume(value)
            except StopIteration as done:
                answer: T = done.value
                return answer
            finally:
                value = None  # otherwise an error here and this frame would refer to each other
            try:
                resume, value = plan.send, await self._do(step)
            except BaseException as error:
                resume, value = plan.throw, error

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Sleep):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Run):
            return await _run_in_thread(step)
        if isinstance(step, Start):
            running = asyncio.create_task(self._call(step.call))
            running.add_done_callback(_note_error)
            return running
        if isinstance(step, Wait):
            return bool((await asyncio.wait([step.running], timeout=step.seconds))[0])
        return await self._call(step)

    async def _call(self, call: Call) -> Any:
        try:
            return await getattr(self._client(call), call.method)(*call.args, **call.kwargs)
        except asyncio.CancelledError as error:
            if self._servers.closed:  # the channel cancelled the call, not the owner of the task
                raise ConnectionError("the channel was closed") from error
            raise


def _note_error(running: asyncio.Task[Any]) -> None:
    """Keeps asyncio from reporting the error of a call that was given up."""
    if not running.cancelled():
        running.exception()


async def _run_in_thread(step: Run) -> Any:
    running = asyncio.create_task(asyncio.to_thread(step.function, *step.args))
    try:
        return await (asyncio.shield(running) if step.must_finish else running)
    except asyncio.CancelledError:
        while step.must_finish and not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        raise


async def _read_ahead(
    images: Iterable[T] | AsyncIterable[T], free_places: asyncio.Semaphore
) -> AsyncIterator[T]:
    """Yields each image as soon as there is a free place for it."""
    if isinstance(images, AsyncIterable):
        await free_places.acquire()
        async for image in images:
            yield image
            await free_places.acquire()
        return
    plain = iter(images)
    while True:
        await free_places.acquire()
        found = await asyncio.to_thread(lambda: list(itertools.islice(plain, 1)))
        if not found:
            return
        yield found[0]
