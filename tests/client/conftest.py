"""A Triton server in this process: the real gRPC service with the detector's contract, but no neural network.

Its "detector" finds three objects that span the whole picture, with scores 0.9, 0.6 and 0.3. Their label is the red
value of the first pixel (0: nothing is found), so that every answer shows which picture it belongs to. Masks, if the
model has them, cover the left half of each box; run-length codes cover the left half of the picture. Keypoint number
k is at x = k, y = 2k and has the score k.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from pycocotools import mask as coco_mask
from rcnn_client import Detector, RcnnError
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

CLASS_NAMES = ["__background__", *(f"class {label}" for label in range(1, 201))]
ROWS = 100

CONFIG = """
name: "faster_rcnn" platform: "ensemble" max_batch_size: 8
input { name: "image" data_type: TYPE_STRING dims: [1] }
output { name: "boxes" data_type: TYPE_FP32 dims: [100, 4] }
output { name: "scores" data_type: TYPE_FP32 dims: [100] }
output { name: "labels" data_type: TYPE_INT64 dims: [100] }
output { name: "num_detections" data_type: TYPE_INT32 dims: [1] }
"""


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        config = text_format.Parse(CONFIG, model_config_pb2.ModelConfig())
        config.parameters["class_names"].string_value = json.dumps(CLASS_NAMES)
        self.configs = {"faster_rcnn": config}
        self.requests: list[service_pb2.ModelInferRequest] = []
        self.seconds_left: list[float | None] = []  # until the deadline of each call, as the server sees it
        self.metadata: list[dict[str, str]] = []  # the headers of each call
        self.num_probes = 0
        self.num_cancelled = 0  # pictures whose caller went away
        self.shared_memory: dict[str, np.ndarray] = {}
        self.ready = True
        self.url = ""
        self.credentials: grpc.ServerCredentials | None = None  # for TLS
        self._server: grpc.Server | None = None
        self.most_in_flight = 0
        self.delay_s: Callable[[int], float] = lambda label: 0.0
        self.status: tuple[grpc.StatusCode, str] | None = None  # the error that every picture gets
        self.spoil: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None
        self._in_flight = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Serve, at the same address as before if it was started before."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(32), options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        url = self.url or "127.0.0.1:0"
        if self.credentials is None:
            port = self._server.add_insecure_port(url)
        else:
            port = self._server.add_secure_port(url, self.credentials)
        self.url = f"{url.rpartition(':')[0]}:{port}"
        self._server.start()

    def stop(self) -> None:
        """Stop at once and end running requests."""
        self._server.stop(grace=None).wait()

    def add_pixels_model(self) -> None:
        """Serve the model that takes pixels, too."""
        config = model_config_pb2.ModelConfig()
        config.CopyFrom(self.configs["faster_rcnn"])
        config.name, config.input[0].name = "faster_rcnn_pixels", "pixels"
        config.input[0].data_type = model_config_pb2.TYPE_UINT8
        self.configs[config.name] = config

    def add_masks(self, models: Iterable[str] = (), with_rles: bool = True) -> None:
        """Let these models, or all, answer masks, too."""
        for model in models or self.configs:
            outputs = self.configs[model].output
            outputs.add(name="masks", data_type=model_config_pb2.TYPE_FP16, dims=[ROWS, 28, 28])
            if with_rles:
                outputs.add(name="rles", data_type=model_config_pb2.TYPE_STRING, dims=[ROWS])

    def add_keypoints(self, count: int, names: list[str] | None = None, models: Iterable[str] = ()) -> None:
        """Let these models, or all, answer `count` keypoints, too; the configs hold `names` if they are given."""
        for model in models or self.configs:
            config = self.configs[model]
            for name, dims in (("keypoints", [ROWS, count, 3]), ("keypoint_scores", [ROWS, count])):
                config.output.add(name=name, data_type=model_config_pb2.TYPE_FP32, dims=dims)
            if names is not None:
                config.parameters["keypoint_names"].string_value = json.dumps(names)

    def SystemSharedMemoryRegister(self, request, context):
        memory = np.memmap(f"/dev/shm{request.key}", np.uint8, "r", shape=(request.byte_size,))
        self.shared_memory[request.name] = memory
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request, context):
        self.shared_memory.pop(request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def sent_bytes(self) -> list[bytes]:
        """The encoded pictures that were received."""
        return [sent_bytes(request) for request in self.requests]

    def sent_pixels(self) -> list[np.ndarray]:
        """The pixels that were received."""
        return [
            sent_pixels(request) for request in self.requests if request.model_name == "faster_rcnn_pixels"
        ]

    def ServerLive(self, request, context):
        self.num_probes += 1
        return service_pb2.ServerLiveResponse(live=True)

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=self.ready and request.name in self.configs)

    def ModelConfig(self, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        self.seconds_left.append(context.time_remaining())
        self._check_model(request.name, context)
        return service_pb2.ModelConfigResponse(config=self.configs[request.name])

    def _check_model(self, name, context):
        if name not in self.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")

    def ModelMetadata(self, request, context):
        return service_pb2.ModelMetadataResponse()

    def ServerMetadata(self, request, context):
        return service_pb2.ServerMetadataResponse()

    def ModelStatistics(self, request, context):
        """Each request waited 1 ms in the queue and took 2 ms to compute; without a name, answers for all models."""
        answer = service_pb2.ModelStatisticsResponse()
        for name in [request.name] if request.name else self.configs:
            count = sum(each.model_name == name for each in self.requests)
            stats = answer.model_stats.add(name=name, inference_count=count, execution_count=count)
            for field, ms in {"success": 3, "queue": 1, "compute_infer": 2}.items():
                duration = getattr(stats.inference_stats, field)
                duration.count, duration.ns = count, count * ms * 1_000_000
        return answer

    def ModelInfer(self, request, context):
        with self._lock:
            self.metadata.append(dict(context.invocation_metadata()))
            self.seconds_left.append(context.time_remaining())
            self.requests.append(request)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            return self._infer(request, context)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _read_pixels(self, request):
        (tensor,) = request.inputs
        if "shared_memory_region" not in tensor.parameters:
            return sent_pixels(request)
        memory = self.shared_memory[tensor.parameters["shared_memory_region"].string_param]
        return memory[: np.prod(tensor.shape)].reshape(tensor.shape[1:])

    def _infer(self, request, context):
        if self.status:
            context.abort(*self.status)
        self._check_model(request.model_name, context)
        try:
            if request.model_name == "faster_rcnn_pixels":
                picture = Image.fromarray(self._read_pixels(request))
            else:
                picture = Image.open(io.BytesIO(sent_bytes(request))).convert("RGB")
        except OSError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "in ensemble 'faster_rcnn', not an image")
        label = picture.getpixel((0, 0))[0]
        time.sleep(self.delay_s(label))
        self.num_cancelled += not context.is_active()

        parameters = dict(request.parameters)
        score_thresh = parameters["score_thresh"].double_param if "score_thresh" in parameters else 0.05
        most = parameters["detections_per_img"].int64_param if "detections_per_img" in parameters else ROWS
        scores = [score for score in (0.9, 0.6, 0.3) if label and score > score_thresh][:most]
        tensors = {  # padding rows hold values that a test would notice
            "boxes": np.full((1, ROWS, 4), np.nan, np.float32),
            "scores": np.full((1, ROWS), 7, np.float32),
            "labels": np.full((1, ROWS), -1, np.int64),
            "num_detections": np.array([[len(scores)]], np.int32),
        }
        tensors["boxes"][0, : len(scores)] = (0, 0, *picture.size)
        tensors["scores"][0, : len(scores)] = scores
        tensors["labels"][0, : len(scores)] = label
        for output in self.configs[request.model_name].output:
            if output.name == "rles":
                tensors["rles"] = padded_rles(picture, len(scores))
            elif output.name not in tensors:
                tensors[output.name] = padded_shapes(output, len(scores))
        self.spoil(tensors)

        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        datatypes = {
            "float16": "FP16",
            "float32": "FP32",
            "int64": "INT64",
            "int32": "INT32",
            "object": "BYTES",
        }
        wanted = [output.name for output in request.outputs]
        for name, tensor in tensors.items():
            if wanted and name not in wanted:
                continue
            answer.outputs.add(name=name, datatype=datatypes[tensor.dtype.name], shape=tensor.shape)
            is_bytes = tensor.dtype == np.object_
            raw = serialize_byte_tensor(tensor).item() if is_bytes else tensor.tobytes()
            answer.raw_output_contents.append(raw)
        return answer


def padded_shapes(output: model_config_pb2.ModelOutput, count: int) -> np.ndarray:
    """The masks, keypoints or keypoint scores of `count` detections; the padding is NaN."""
    is_mask = output.name == "masks"
    tensor = np.full((1, *output.dims), np.nan, np.float16 if is_mask else np.float32)
    real = tensor[0, :count]
    if is_mask:
        real[:] = np.arange(28) < 14
    elif output.name == "keypoints":
        number = np.arange(output.dims[1])
        real[:] = np.stack((number, 2 * number, np.ones_like(number)), axis=1)
    else:
        real[:] = np.arange(output.dims[1])
    return tensor


def padded_rles(picture: Image.Image, count: int) -> np.ndarray:
    """The left half of the picture as a run-length code, `count` times; the padding is not a valid code."""
    mask = np.zeros((picture.height, picture.width), np.uint8, order="F")
    mask[:, : picture.width // 2] = 1
    rles = np.full((1, ROWS), b"no code", np.object_)
    rles[0, :count] = coco_mask.encode(mask)["counts"]
    return rles


class Path:
    """A network path to a server that can be slow or frozen: a frozen path accepts data and silently holds it back."""

    def __init__(self, url: str) -> None:
        self.bytes_per_s = 0  # of each connection; 0: no limit
        self._target = url
        self._passes = threading.Event()
        self._passes.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        self._passes.clear()

    def thaw(self) -> None:
        self._passes.set()

    def close(self) -> None:
        self.thaw()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                here = self._listener.accept()[0]
                host, port = self._target.split(":")
                there = socket.create_connection((host, int(port)))
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._passes.wait()
                target.sendall(data)
                if self.bytes_per_s:
                    time.sleep(len(data) / self.bytes_per_s)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def sent_bytes(request: service_pb2.ModelInferRequest) -> bytes:
    """The picture in a request, taken from the wire form of a BYTES [1, 1] tensor: length, then content."""
    (tensor,), (raw,) = request.inputs, request.raw_input_contents
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("image", "BYTES", [1, 1])
    assert int.from_bytes(raw[:4], "little") == len(raw) - 4
    return raw[4:]


def sent_pixels(request: service_pb2.ModelInferRequest) -> np.ndarray:
    """The picture in a request as uint8 [height, width, 3], from the wire form of a UINT8 tensor."""
    (tensor,), (raw,) = request.inputs, request.raw_input_contents
    assert (tensor.name, tensor.datatype, tensor.shape[0]) == ("pixels", "UINT8", 1)
    return np.frombuffer(raw, np.uint8).reshape(tensor.shape[1:])


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    """A new server; `server.url` is its address."""
    fake = FakeTriton()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def other_server() -> Iterator[FakeTriton]:
    """A second server."""
    fake = FakeTriton()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def path_to_server(server: FakeTriton) -> Iterator[Path]:
    """A network path to `server` that can be frozen; `path_to_server.url` is its address."""
    path = Path(server.url)
    yield path
    path.close()


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """png(label): the bytes of a PNG to which the fake detector gives that label."""

    def encode(label: int, size: tuple[int, int] = (40, 30)) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, (label, 0, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    return encode


def seconds_until_it_answers(
    detector: Detector, picture: bytes, errors: tuple[type[RcnnError], ...] = (RcnnError,)
) -> float:
    """How many seconds pass until the detector answers; until then only these errors are allowed."""
    began = time.monotonic()
    while True:
        try:
            detector.detect(picture)
        except errors:
            assert time.monotonic() - began < 15
            time.sleep(0.05)
        else:
            return time.monotonic() - began
