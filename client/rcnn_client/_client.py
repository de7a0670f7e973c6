"""The synchronous client: pictures in, detections out, over gRPC."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import tritonclient.grpc as triton

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

AnyImage = TypeVar("AnyImage", bound=ImageInput)
T = TypeVar("T")


class Detector(BaseDetector):
    """A detector on a Triton server, or on several.

    Connects at the first call. Safe to share between threads. The model's class names are read once: open
    a new `Detector` when the server gets another model under the same name.

    Args:
        url: host:port of the server's gRPC endpoint, or a list of them. Servers, and the addresses that a
            host name resolves to, take turns. A server that fails or hangs is left out until it answers again.
            A server that hangs delays a call by at most 2 s while another server works: after half a second of
            silence, the client asks it whether it is alive, and sends the call to another server only if it does
            not answer.
        model: name of the detector in the server's model repository.
        timeout_s: limit of every call in seconds, including its retries. While another server can still be
            tried, a server that is alive gets a quarter of the time that is left, but at least a second.
        retries: how many times a call is sent again, to the next server, after a server was unavailable or
            did not answer in time. Every server is tried once before the call fails, unless this is 0. The waits
            between the attempts are random. Their upper limit starts at 0.05 s, or at 0.5 s if the queues of all
            servers are full, and doubles each time.
        tls: certificates for an encrypted connection. If None, the connection is not encrypted.
        headers: sent with every call, for example a token.
        transport: "shm" passes arrays to a server on the same host through shared memory. Files, bytes and
            `PIL.Image` always go over gRPC.

    Raises:
        InvalidParameterError: an argument is outside its range.
    """

    _client_class = triton.InferenceServerClient

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls still running end with `DetectorClosedError`."""
        for client in self._take_clients():
            client.close()
        self._release()

    def detect(self, image: ImageInput, **options: Unpack[DetectOptions]) -> Detections:
        """Detect the objects in a picture.

        Args:
            image: a path, the bytes of an encoded picture, a `PIL.Image` (its EXIF orientation is applied), or
                a uint8 array [height, width, 3] in RGB order or [height, width] in grey. Files and bytes are
                sent as they are; pixels are sent without loss. OpenCV's arrays are in BGR order: pass
                `frame[:, :, ::-1]`.
            options: see `DetectOptions`.

        Raises:
            InvalidImageError: the picture cannot be read, or the server refused it.
            InvalidParameterError: an option is outside its range.
            TypeError: there is no such option.
            ServerUnavailableError, DeadlineExceededError, CertificateError, AccessDeniedError,
                ModelNotFoundError, NotADetectorError, ServerError: the server, or the model, cannot answer.
        """
        return self._run(self._detect_one(image, read_options(options)))

    def detect_batch(
        self, images: Iterable[ImageInput], *, in_flight: int = 16, **options: Unpack[DetectOptions]
    ) -> list[Detections]:
        """Detect objects in several pictures, with one request each; returns the answers in the same order.

        A picture that fails does not stop the others.

        Raises:
            BatchError: some pictures failed; it holds the detections of the others.
            RcnnError: an error that does not concern a single picture; see `detect`.
        """
        return gather(self.detect_stream(images, in_flight=in_flight, **options))

    def detect_stream(
        self, images: Iterable[AnyImage], *, in_flight: int = 16, **options: Unpack[DetectOptions]
    ) -> Generator[Result[AnyImage], None, None]:
        """Detect objects in any number of pictures; yields a `Result` for each, in the same order.

        Pictures are read only as fast as you take the results: at most twice `in_flight` pictures are held at
        a time. The result of a picture that failed holds the error. `images` is read in the caller's thread.
        If it raises an exception, the stream first yields the results of the pictures before it, then raises.

        >>> for result in detector.detect_stream(Path("photos").glob("*.jpg")):
        ...     print(result.image, result.error or len(result.detections))

        Args:
            images: pictures as `detect` takes them.
            in_flight: how many pictures may be at the server at once.
            options: see `DetectOptions`; `timeout_s` applies to each picture and starts when it is sent.

        Raises:
            RcnnError: an error that does not concern a single picture; see `detect`.
        """
        check_stream(images, in_flight)
        return self._stream(images, in_flight, read_options(options))

    def detect_tiled(
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
        """Detect small objects in a large picture: detects in overlapping tiles and merges their detections.

        Tiles, merging and defaults are those of SAHI (sliced inference), but the tiles are sent at the same time, so
        that the server can batch them. Boxes, masks and keypoints are in pixels of the whole picture.

        >>> found = detector.detect_tiled("aerial.jpg", tile_hw=(800, 800), score_thresh=0.5)

        Args:
            image: as `detect` takes it; the client decodes it and sends the tiles without loss.
            tile_hw: height and width of a tile in pixels. Where the picture is smaller, so are its tiles.
            overlap: overlap of neighbouring tiles as a share of the tile, 0 to less than 1. Choose it so that an
                object that one tile cuts is whole in the next.
            whole: whether to detect in the whole picture as well, which finds the large objects.
            merge: how to merge the detections of one object. "greedy_nmm" merges all that match the best one: the
                box is the smallest around them, the score is the best one, and masks are united. "nmm" also merges
                detections that match those. "nms" keeps only the best. None chooses as SAHI does: "greedy_nmm", but
                "nms" with "iou" if `score_thresh` is below 0.1 or left to the model, as weak detections would make
                boxes too large. With keypoints it is "nms", since keypoints cannot be merged.
            merge_metric: the overlap by which detections of one class match: their intersection over the smaller box
                ("ios") or over their union ("iou"). With "ios", a part of an object matches the whole object. None
                means "ios", or "iou" where a `merge` of None chooses it.
            merge_thresh: two detections match if their overlap is at least this (above 0, at most 1).
            in_flight: how many tiles may be at the server at once.
            options: see `DetectOptions`. They apply to each tile, and `timeout_s` starts when the tile is sent; only
                `top_k` applies to the whole picture. Masks are returned as run-length codes for `mask_thresh`.

        Raises:
            RcnnError: as for `detect`. If one tile fails, the call fails; the message names the tile.
        """
        check_in_flight(in_flight)
        tiling = Tiling(tile_hw, overlap, whole, merge, merge_metric, merge_thresh)
        for_picture = read_options(options)
        for_tile = dataclasses.replace(for_picture, top_k=None)
        picture = self._run(self._cut(image, tiling, for_tile))
        with closing(self._stream(picture.tiles, in_flight, for_tile)) as results:
            found = picture.merge([result.detections for result in results])
        return found[: for_picture.top_k]

    def is_ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether at least one server answers now and has loaded the model."""
        return self._run(self._is_ready(timeout_s))

    def info(self, *, timeout_s: float | None = None) -> DetectorInfo:
        """Ask the server about the detector; every call asks again."""
        return self._run(self._info(timeout_s))

    def _stream(
        self, images: Iterable[T], in_flight: int, options: Options
    ) -> Generator[Result[T], None, None]:
        held: deque[Future[Result[T]]] = deque()
        pool = ThreadPoolExecutor(in_flight, thread_name_prefix="rcnn-client")
        try:
            request = self._run(self._prepare(options, self._deadline(options.timeout_s)))
            numbered = enumerate(images)
            failure: Exception | None = None
            while failure is None:
                try:
                    index, image = next(numbered)
                except StopIteration:
                    break
                except Exception as error:
                    failure = error
                    break
                held.append(pool.submit(self._answer, image, index, request))
                while held and (len(held) >= window(in_flight) or held[0].done()):
                    yield held.popleft().result()
            while held:
                yield held.popleft().result()
            if failure is not None:
                raise failure
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # waiting would delay Ctrl-C

    def _answer(self, image: T, index: int, request: Request) -> Result[T]:
        try:
            return Result(image, self._run(self._detect_in_stream(image, index, request)))
        except RcnnError as error:
            return Result(image, error)

    def _run(self, plan: Plan[T]) -> T:
        """Carry out the plan in this thread."""
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
                resume, value = plan.send, self._do(step)
            except BaseException as error:
                resume, value = plan.throw, error

    def _do(self, step: Step) -> Any:
        if isinstance(step, Sleep):
            return time.sleep(step.seconds)
        if isinstance(step, Run):
            return step.function(*step.args)
        if isinstance(step, Start):
            return _Inference(self._client(step.call), step.call)
        if isinstance(step, Wait):
            return bool(wait([step.running], step.seconds).done)
        return getattr(self._client(step), step.method)(*step.args, **step.kwargs)


class _Inference(Future[Any]):
    """A running call of `infer`."""

    _starting = threading.Lock()

    def __init__(self, client: triton.InferenceServerClient, call: Call) -> None:
        super().__init__()
        with self._starting:  # tritonclient mixes up the callbacks of calls that start at the same time
            self._rpc = client.async_infer(*call.args, callback=self._end, **call.kwargs)

    def cancel(self) -> bool:
        """Cancel the call, also on the server."""
        self._rpc.cancel()
        return True

    def _end(self, result: Any, error: Exception | None) -> None:
        if error is None:
            self.set_result(result)
        else:
            self.set_exception(error)
