"""The synchronous client: pictures in, detections out, over gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar, overload

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from ._contract import ModelInfo, read_answer, read_model_config, request_inputs, request_parameters
from ._detections import Detections
from ._errors import BatchError, DetectorClosedError, InvalidParameterError, RcnnError, from_transport
from ._images import ImageInput, encode_image, image_name

AnyImage = TypeVar("AnyImage", bound=ImageInput)


class Detector:
    """A detector on a Triton server.

    Connects at the first call. Safe to share between threads. The model's class names are read once: open
    a new `Detector` when the server gets another model under the same name.

    Args:
        url: host:port of the server's gRPC endpoint.
        model: name of the detector in the server's model repository.
        timeout_s: limit of every call to the server, in seconds.
        max_in_flight: how many pictures of a list may be at the server at once.

    Raises:
        InvalidParameterError: an argument is outside its range.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        model: str = "faster_rcnn",
        *,
        timeout_s: float = 60.0,
        max_in_flight: int = 8,
    ) -> None:
        if url.startswith(("http://", "https://", "grpc://", "grpcs://")):
            raise InvalidParameterError(f"url is {url!r}, expected host:port, as localhost:8001")
        if not model:
            raise InvalidParameterError("model is empty, expected the name of a model on the server")
        if not 0 < timeout_s < float("inf"):
            raise InvalidParameterError(f"timeout_s is {timeout_s}, expected a positive number of seconds")
        if max_in_flight < 1:
            raise InvalidParameterError(f"max_in_flight is {max_in_flight}, expected at least 1")
        self._url, self._model, self._timeout_s = url, model, timeout_s
        self._max_in_flight = max_in_flight
        self._client = triton.InferenceServerClient(url)
        self._info: ModelInfo | None = None
        self._closed = False

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls still running end with `DetectorClosedError`."""
        self._closed = True
        self._client.close()

    @overload
    def detect(
        self,
        image: ImageInput,
        *,
        score_thresh: float | None = None,
        nms_thresh: float | None = None,
        detections_per_img: int | None = None,
    ) -> Detections: ...

    @overload
    def detect(
        self,
        image: list[AnyImage] | tuple[AnyImage, ...],
        *,
        score_thresh: float | None = None,
        nms_thresh: float | None = None,
        detections_per_img: int | None = None,
    ) -> list[Detections]: ...

    def detect(
        self,
        image: ImageInput | list[AnyImage] | tuple[AnyImage, ...],
        *,
        score_thresh: float | None = None,
        nms_thresh: float | None = None,
        detections_per_img: int | None = None,
    ) -> Detections | list[Detections]:
        """Detect the objects in a picture, or in each picture of a list.

        A list goes to the server as one request per picture, at most `max_in_flight` at a time; the answers
        come back in its order. A picture that fails does not stop the others: when all are done, `BatchError`
        carries the detections of those that went well and the error of each that did not.

        Args:
            image: a path, the bytes of an encoded picture, a `PIL.Image` (its EXIF orientation is applied), a
                uint8 array [height, width, 3] in RGB order or [height, width] in grey; or a list or tuple of
                these. Files and bytes are sent as they are, pixels without loss.
            score_thresh: keep detections whose score is above this (0 to 1).
            nms_thresh: of two boxes of a class that overlap by more than this IoU (0 to 1), keep the better.
            detections_per_img: the most detections per picture, up to what the model was exported for.
                Where one of these three is None, the model's own value holds.

        Raises:
            InvalidImageError: the picture cannot be read, or the server refused it.
            InvalidParameterError: a threshold or count is outside its range.
            ServerUnavailableError, DeadlineExceededError, ModelNotFoundError, NotADetectorError, ServerError:
                the server, or the model, cannot answer.
            BatchError: a list was given and some of its pictures failed.
        """
        if isinstance(image, list | tuple) and not image:
            return []
        info = self._model_info()
        parameters = request_parameters(info, score_thresh, nms_thresh, detections_per_img)
        if isinstance(image, list | tuple):
            return self._detect_each(image, info, parameters)
        return self._infer(encode_image(image), image_name(image), info, parameters)

    def _detect_each(
        self,
        images: list[AnyImage] | tuple[AnyImage, ...],
        info: ModelInfo,
        parameters: dict[str, float | int],
    ) -> list[Detections]:
        answers: list[Future[Detections]] = []
        free_slots = threading.Semaphore(self._max_in_flight)
        pool = ThreadPoolExecutor(self._max_in_flight, thread_name_prefix="rcnn-client")
        try:
            for image in images:
                # A slot is taken before a picture is encoded, so that memory holds only what is in flight.
                # Encoding stays in this thread: the list may hold the same lazily loaded PIL.Image twice.
                free_slots.acquire()
                answer: Future[Detections]
                try:
                    encoded = encode_image(image)
                except RcnnError as error:
                    answer = Future()
                    answer.set_exception(error)
                else:
                    answer = pool.submit(self._infer, encoded, image_name(image), info, parameters)
                answer.add_done_callback(lambda _: free_slots.release())
                answers.append(answer)
        finally:
            pool.shutdown(wait=False)  # what was submitted still runs; not waiting lets Ctrl-C out

        results: dict[int, Detections] = {}
        errors: dict[int, RcnnError] = {}
        for index, answer in enumerate(answers):
            try:
                results[index] = answer.result()
            except RcnnError as error:
                errors[index] = error
        if errors:
            raise BatchError([results.get(index) for index in range(len(images))], errors)
        return list(results.values())

    def _infer(
        self, encoded: bytes, name: str, info: ModelInfo, parameters: dict[str, float | int]
    ) -> Detections:
        inputs = request_inputs(encoded)
        answer = self._call(self._client.infer, self._model, inputs, parameters=parameters, image_name=name)
        return read_answer(answer, info, name)

    def _model_info(self) -> ModelInfo:
        if self._info is None:  # threads that come here together all ask; none waits for another's deadline
            reply = self._call(self._client.get_model_config, self._model)
            self._info = read_model_config(reply.config)
        return self._info

    def _call(
        self, method: Callable[..., Any], *args: Any, image_name: str | None = None, **kwargs: Any
    ) -> Any:
        """Call the server: with a deadline, and with its errors translated."""
        try:
            return method(*args, client_timeout=self._timeout_s, **kwargs)
        except (InferenceServerException, ValueError) as error:  # ValueError: a channel already closed
            if self._closed:
                raise DetectorClosedError(f"the Detector of {self._url} is closed; open a new one") from error
            if not isinstance(error, InferenceServerException):
                raise
            raise from_transport(
                error, url=self._url, model=self._model, timeout_s=self._timeout_s, image_name=image_name
            ) from error
