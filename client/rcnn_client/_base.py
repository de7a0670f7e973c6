"""What the sync and the async detector share: everything except how a step is carried out."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import InferInput

from ._clients import Clients
from ._connection import Connection, TLSConfig
from ._contract import (
    PIXELS,
    PIXELS_SUFFIX,
    Contract,
    encoded_input,
    pixels_input,
    read_answer,
    read_model_config,
    wanted_outputs,
)
from ._deadline import Deadline
from ._detections import Detections
from ._errors import (
    CertificateError,
    DeadlineExceededError,
    InvalidParameterError,
    ModelNotFoundError,
    NotADetectorError,
    QueueFullError,
    ServerUnavailableError,
)
from ._images import encode_image, encoded_size_hw, faults_of, image_name, rgb_pixels
from ._info import DetectorInfo, read_info, step_models
from ._options import Options, Request
from ._servers import Servers
from ._shm import LOST, Region, Regions
from ._steps import Call, Plan, Run, copy
from ._tiles import Tile, TiledPicture, Tiling

T = TypeVar("T")


class BaseDetector:
    """The settings of a detector, and a plan for each of its methods."""

    _client_class: ClassVar[Any]  # tritonclient's

    def __init__(
        self,
        url: str | Sequence[str] = "localhost:8001",
        model: str = "faster_rcnn",
        *,
        timeout_s: float = 60.0,
        retries: int = 4,
        tls: TLSConfig | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Literal["grpc", "shm"] = "grpc",
    ) -> None:
        Deadline(timeout_s)
        if not model:
            raise InvalidParameterError("model is empty, expected the name of a model on the server")
        if transport not in ("grpc", "shm"):
            raise InvalidParameterError(f'transport is {transport!r}, expected "grpc" or "shm"')
        self._connection = Connection(url, tls, headers)
        self._servers = Servers(self._connection, model, retries)
        self._model, self._timeout_s = model, timeout_s
        self._uses_shm = transport == "shm"
        self._contract: Contract | None = None
        self._pixels_model: str | None = None  # the server was not asked yet
        self._pil_lock = threading.Lock()
        self._clients = Clients(self._connection)
        self._regions = Regions(self._connection)
        self._release = weakref.finalize(self, self._regions.release)

    def _client(self, call: Call) -> Any:
        """The tritonclient for a call."""
        return self._clients.client(call.endpoint, self._client_apart if call.apart else self._client_class)

    def _client_apart(self, url: str, *, channel_args: list[tuple[str, Any]], **kwargs: Any) -> Any:
        """A tritonclient with its own connection; by default, the clients of a process share connections."""
        own = [*channel_args, ("grpc.use_local_subchannel_pool", 1)]
        return self._client_class(url, channel_args=own, **kwargs)

    def _take_clients(self) -> list[Any]:
        """Refuse new calls from now on; returns the tritonclients that the caller must close."""
        self._servers.closed = True
        return self._clients.close()

    def _reopening(self, plan: Plan[T]) -> Plan[T]:
        """Carry out the plan of a call; if no server answers, later calls may open new connections."""
        try:
            answer = yield from plan
        except (ServerUnavailableError, CertificateError, DeadlineExceededError) as error:
            if not isinstance(error, QueueFullError):
                self._clients.failed()
            raise
        self._clients.answered()
        return answer

    def _ask(self, method: str, *args: Any, deadline: Deadline) -> Plan[Any]:
        return self._reopening(self._servers.call(method, *args, deadline=deadline))

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)

    def _prepare(self, options: Options, deadline: Deadline) -> Plan[Request]:
        """The request for these options. The first call asks the server for the model's config."""
        if self._contract is None:  # threads that get here at the same time may all ask; that is harmless
            reply = yield from self._ask("get_model_config", self._model, deadline=deadline)
            self._contract = read_model_config(reply.config)
        return Request(options, self._contract)

    def _detect_one(self, image: Any, options: Options) -> Plan[Detections]:
        deadline = self._deadline(options.timeout_s)
        request = yield from self._prepare(options, deadline)
        return (yield from self._detect(image, image_name(image), request, deadline))

    def _detect_in_stream(self, image: Any, index: int, request: Request) -> Plan[Detections]:
        tile = image if isinstance(image, Tile) else Tile(image, image_name(image, f"image {index}"))
        deadline = self._deadline(request.options.timeout_s)
        return (yield from self._detect(tile.image, tile.name, request, deadline, f"-{index}"))

    def _cut(self, image: Any, tiling: Tiling, options: Options) -> Plan[TiledPicture]:
        """The tiles of a picture, and how to merge the model's answers for them."""
        request = yield from self._prepare(options, self._deadline(options.timeout_s))
        has_keypoints = request.contract.keypoint_names is not None
        merging, name = tiling.merging(options.score_thresh, has_keypoints), image_name(image)

        def cut() -> TiledPicture:
            lock = self._pil_lock if isinstance(image, Image.Image) else nullcontext()
            with lock, faults_of(name):
                return tiling.cut(image, name, merging)

        picture: TiledPicture = yield Run(cut, ())
        return picture

    def _detect(
        self, image: Any, name: str, request: Request, deadline: Deadline, suffix: str = ""
    ) -> Plan[Detections]:
        """Detect objects in one picture. Errors call it `name`; `suffix` is added to the request's id.

        Raises:
            NotADetectorError: transport is "shm", and the server has no model that takes pixels.
        """
        options = request.options
        model = self._model
        with faults_of(name):
            pixels = rgb_pixels(image) if isinstance(image, np.ndarray) else None
        if pixels is not None and (
            pixels_model := (yield from self._ask_for_pixels(request.contract, deadline))
        ):
            model = pixels_model
        elif pixels is not None and self._uses_shm:
            raise NotADetectorError(
                f'transport="shm" needs the model {model}{PIXELS_SUFFIX}, which the server does not have; '
                "export the detector again with rcnn-export and serve both"
            )
        else:
            pixels = None
            is_encoded = isinstance(image, bytes)
            with faults_of(name):
                encoded = encode_image(image) if is_encoded else (yield Run(self._encode, (image,)))
                tensor = yield from copy(encoded_input, encoded, num_bytes=len(encoded))

        outputs = wanted_outputs(request.output_shapes)
        if pixels is not None and not self._uses_shm:
            with faults_of(name):
                tensor = yield from copy(pixels_input, pixels, num_bytes=pixels.nbytes)

        def infer(endpoint: int, tensor: InferInput, limit: Deadline) -> Plan[Any]:
            return self._servers.attempt(
                endpoint,
                "infer",
                model,
                [tensor],
                deadline=limit,
                image_name=name,
                outputs=outputs,
                parameters=request.parameters,
                request_id=options.request_id and options.request_id + suffix,
            )

        def attempt(endpoint: int, limit: Deadline) -> Plan[Any]:
            if pixels is not None and self._uses_shm:
                return self._share(endpoint, pixels, limit, infer)
            return infer(endpoint, tensor, limit)

        answer = yield from self._reopening(self._servers.retry(attempt, deadline))
        size_hw = None
        if not request.output_shapes.keys().isdisjoint(("masks", "rles")):
            if pixels is not None:
                size_hw = (pixels.shape[0], pixels.shape[1])
            else:
                with faults_of(name):
                    size_hw = yield from copy(encoded_size_hw, encoded, num_bytes=len(encoded))
        found = read_answer(
            answer, request.contract, request.output_shapes, name, size_hw, request.mask_thresh
        )
        return request.keep(found)

    def _encode(self, image: Any) -> bytes:
        if not isinstance(image, Image.Image):
            return encode_image(image)
        with self._pil_lock:  # a batch may hold the same lazily loaded picture twice
            return encode_image(image)

    def _ask_for_pixels(self, contract: Contract, deadline: Deadline) -> Plan[str]:
        """The name of the model that takes pixels: the detector or its `_pixels` model; empty if there is none."""
        if self._pixels_model is None:
            name = self._model if contract.takes_pixels else self._model + PIXELS_SUFFIX
            if not contract.takes_pixels:
                try:
                    reply = yield from self._ask("get_model_config", name, deadline=deadline)
                    read_model_config(reply.config, PIXELS)
                except (ModelNotFoundError, NotADetectorError):
                    name = ""
            self._pixels_model = name
        return self._pixels_model

    def _share(
        self,
        endpoint: int,
        pixels: NDArray[np.uint8],
        deadline: Deadline,
        infer: Callable[[int, InferInput, Deadline], Plan[T]],
    ) -> Plan[T]:
        """Call `infer` with the pixels in shared memory."""
        region = self._regions.take(endpoint, pixels.nbytes)
        if region is None:
            region = yield from self._open_region(endpoint, pixels.nbytes, deadline)
        lost = False
        try:
            yield from copy(region.write, pixels, num_bytes=pixels.nbytes, must_finish=True)
            return (yield from infer(endpoint, pixels_input(pixels, region.name), deadline))
        except ModelNotFoundError as error:
            lost = LOST in str(error)
            if not lost:
                raise
            raise ServerUnavailableError(f"{self._connection.urls[endpoint]} was restarted") from error
        finally:
            if lost:
                self._regions.forget(endpoint)
            else:
                self._regions.give_back(endpoint, region)

    def _open_region(self, endpoint: int, byte_size: int, deadline: Deadline) -> Plan[Region]:
        """A new region of shared memory that this endpoint has opened."""
        made: list[Region] = []  # a list, so that it is known even if this task is cancelled meanwhile
        try:
            yield Run(lambda: made.append(Region(byte_size)), (), must_finish=True)
            region = made[0]
            self._regions.opening(endpoint, region)
            call = ("register_system_shared_memory", region.name, f"/{region.name}", region.byte_size)
            yield from self._servers.attempt(endpoint, *call, deadline=deadline)
            return region
        finally:
            for region in made:
                region.unlink()

    def _is_ready(self, timeout_s: float | None) -> Plan[bool]:
        ready = yield from self._servers.is_ready(self._deadline(timeout_s))
        if not ready:
            self._clients.failed()
        return ready

    def _info(self, timeout_s: float | None) -> Plan[DetectorInfo]:
        deadline, call = self._deadline(timeout_s), self._ask
        config = (yield from call("get_model_config", self._model, deadline=deadline)).config
        contract = read_model_config(config)
        steps = []
        for name in step_models(config):
            steps.append((yield from call("get_model_config", name, deadline=deadline)).config)
        model = yield from call("get_model_metadata", self._model, deadline=deadline)
        server = yield from call("get_server_metadata", deadline=deadline)
        takes_pixels = yield from self._ask_for_pixels(contract, deadline)
        return read_info(contract, config, steps, model, server, bool(takes_pixels))
