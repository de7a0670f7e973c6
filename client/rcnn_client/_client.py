"""The synchronous client: pictures in, detections out, over gRPC."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import tritonclient.grpc as triton

from ._base import BaseDetector
from ._detections import Detections
from ._errors import RcnnError
from ._images import ImageInput
from ._info import DetectorInfo
from ._options import DetectOptions, Options, Request, read_options
from ._results import Result, check_stream, gather, window
from ._steps import Plan, Run, Sleep, Step

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
        model: name of the detector in the server's model repository.
        timeout_s: limit of every call in seconds, including its retries. While another server can still be
            tried, one server gets a quarter of the time that is left, but at least a second.
        retries: how many times a call is sent again, to the next server, after a server was unavailable or
            did not answer in time. The waits in between are random. Their limit starts at 0.05 s, or at 0.5 s
            where the queues of all servers are full, and doubles each time.
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
        """Detect in several pictures, one request each; the answers come back in their order.

        A picture that fails does not stop the others.

        Raises:
            BatchError: some pictures failed; it holds the detections of the others.
            RcnnError: an error that concerns no single picture, see `detect`.
        """
        return gather(self.detect_stream(images, in_flight=in_flight, **options))

    def detect_stream(
        self, images: Iterable[AnyImage], *, in_flight: int = 16, **options: Unpack[DetectOptions]
    ) -> Generator[Result[AnyImage], None, None]:
        """Detect in any number of pictures; yields a `Result` for each, in their order.

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
            RcnnError: an error that concerns no single picture, see `detect`.
        """
        check_stream(images, in_flight)
        return self._stream(images, in_flight, read_options(options))

    def is_ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether at least one server answers now and has loaded the model."""
        return self._run(self._is_ready(timeout_s))

    def info(self, *, timeout_s: float | None = None) -> DetectorInfo:
        """Ask the server about the detector; every call asks again."""
        return self._run(self._info(timeout_s))

    def _stream(
        self, images: Iterable[AnyImage], in_flight: int, options: Options
    ) -> Generator[Result[AnyImage], None, None]:
        held: deque[Future[Result[AnyImage]]] = deque()
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

    def _answer(self, image: AnyImage, index: int, request: Request) -> Result[AnyImage]:
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
                value = None  # an error here would refer to this frame, and the frame to the error
            try:
                resume, value = plan.send, self._do(step)
            except BaseException as error:
                resume, value = plan.throw, error

    def _do(self, step: Step) -> Any:
        if isinstance(step, Sleep):
            return time.sleep(step.seconds)
        if isinstance(step, Run):
            return step.function(*step.args)
        return getattr(self._client(step.endpoint), step.method)(*step.args, **step.kwargs)
