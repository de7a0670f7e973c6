"""Cheap clients of one detector, for the process that makes the load: requests are encoded once, answers kept as bytes.

gRPC calls use one channel. HTTP requests use as many connections as there are requests waiting.
"""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import aiohttp
import grpc
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2

OUTPUTS = ("boxes", "scores", "labels", "num_detections")
INFER = "/inference.GRPCInferenceService/ModelInfer"
HEADER_LENGTH = "Inference-Header-Content-Length"
CLOSED_LOOP_DEADLINE_S = 60.0
WAIT_AFTER_REFUSAL_S = 0.1

Outcome = Literal["answered", "refused", "late", "failed"]


@dataclass(frozen=True)
class Reply:
    """The outcome of a request.

    ``sent_s``: in the time of ``time.monotonic``. ``late``: no answer before the request's deadline. ``body``: the
    bytes of an answer, as the protocol sends them. ``json_bytes``: the length of the JSON at the beginning of an HTTP
    body. ``message``: the text of an error.
    """

    picture: int
    sent_s: float
    seconds: float
    outcome: Outcome
    body: bytes = b""
    json_bytes: int = 0
    message: str = ""


@dataclass(frozen=True)
class Target:
    """The detector to which requests are sent.

    Args:
        url: ``host:port``.
        parameters: the parameters of every request.
    """

    protocol: Literal["grpc", "http"]
    url: str
    model: str
    pictures: Sequence[bytes]
    parameters: dict[str, float]


Ask = Callable[[int, float], Awaitable[Reply]]  # the picture's index, the deadline in seconds


def pin(cores: set[int]) -> None:
    """Keeps this process on these cores."""
    os.sched_setaffinity(0, cores)


def run_each(target: Target) -> list[Reply]:
    """The reply to each picture, one after the other."""

    async def run(ask: Ask) -> list[Reply]:
        return [await ask(picture, CLOSED_LOOP_DEADLINE_S) for picture in range(len(target.pictures))]

    return _measure(target, run)[0]


def run_closed(target: Target, clients: int, seconds: float) -> tuple[list[Reply], float]:
    """Each client sends the next picture as soon as it has an answer. Returns replies, CPU seconds of this process."""
    return _measure(target, lambda ask: _closed(ask, len(target.pictures), clients, seconds))


def run_overload(
    target: Target,
    rate: float,
    seconds: float,
    deadlines_s: tuple[float, float],
    clients: int,
    normal_s: float,
) -> tuple[list[Reply], list[Reply], float]:
    """Sends requests at a steady rate, whether or not they are answered, and directly after them runs the closed loop.

    Args:
        rate: requests per second.
        deadlines_s: the shortest and the longest deadline; each request's is random between them.

    Returns:
        The replies of both, and the CPU seconds of this process.
    """
    normal: list[Reply] = []

    async def run(ask: Ask) -> list[Reply]:
        begun = await _open(ask, len(target.pictures), rate, seconds, deadlines_s)
        normal.extend(await _closed(ask, len(target.pictures), clients, normal_s))
        return await asyncio.gather(*begun)

    replies, cpu_s = _measure(target, run)
    return replies, normal, cpu_s


def _measure(target: Target, run: Callable[[Ask], Awaitable[list[Reply]]]) -> tuple[list[Reply], float]:
    async def connect() -> list[Reply]:
        async with (_over_grpc if target.protocol == "grpc" else _over_http)(target) as ask:
            return await run(ask)

    before = time.process_time()
    replies = asyncio.run(connect())
    return replies, time.process_time() - before


async def _closed(ask: Ask, num_pictures: int, clients: int, seconds: float) -> list[Reply]:
    replies: list[Reply] = []
    end = time.monotonic() + seconds

    async def client(turn: int) -> None:
        while time.monotonic() < end:
            reply = await ask(turn % num_pictures, CLOSED_LOOP_DEADLINE_S)
            replies.append(reply)
            if reply.outcome != "answered":
                await asyncio.sleep(WAIT_AFTER_REFUSAL_S)
            turn += 5

    await asyncio.gather(*map(client, range(clients)))
    return replies


async def _open(
    ask: Ask, num_pictures: int, rate: float, seconds: float, deadlines_s: tuple[float, float]
) -> list[asyncio.Task[Reply]]:
    """The requests that were sent, some of which are not answered yet."""
    begun, start = [], time.monotonic()
    chance = random.Random(0)
    for turn in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, start + turn / rate - time.monotonic()))
        begun.append(asyncio.ensure_future(ask(turn % num_pictures, chance.uniform(*deadlines_s))))
    return begun


@contextlib.asynccontextmanager
async def _over_grpc(target: Target) -> AsyncIterator[Ask]:
    bodies = [_grpc_request(target, picture) for picture in target.pictures]
    async with grpc.aio.insecure_channel(target.url) as channel:
        infer = channel.unary_unary(INFER)

        async def ask(picture: int, deadline_s: float) -> Reply:
            sent_s = time.monotonic()
            try:
                body = await infer(bodies[picture], timeout=deadline_s)
            except grpc.aio.AioRpcError as error:
                outcomes: dict[grpc.StatusCode, Outcome] = {
                    grpc.StatusCode.UNAVAILABLE: "refused",
                    grpc.StatusCode.DEADLINE_EXCEEDED: "late",
                }
                outcome = outcomes.get(error.code(), "failed")
                took_s = time.monotonic() - sent_s
                return Reply(picture, sent_s, took_s, outcome, message=error.details() or "")
            return Reply(picture, sent_s, time.monotonic() - sent_s, "answered", body)

        yield ask


@contextlib.asynccontextmanager
async def _over_http(target: Target) -> AsyncIterator[Ask]:
    requests = [_http_request(target, picture) for picture in target.pictures]
    url = f"http://{target.url}/v2/models/{target.model}/infer"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(picture: int, deadline_s: float) -> Reply:
            body, json_bytes = requests[picture]
            sent_s = time.monotonic()
            limit = aiohttp.ClientTimeout(total=deadline_s)
            headers = {HEADER_LENGTH: str(json_bytes)}
            try:
                async with session.post(url, data=body, headers=headers, timeout=limit) as response:
                    answer, status = await response.read(), response.status
                    json_bytes = int(response.headers.get(HEADER_LENGTH, 0))
            except (TimeoutError, aiohttp.ClientError) as error:
                outcome: Outcome = "late" if isinstance(error, TimeoutError) else "failed"
                return Reply(picture, sent_s, time.monotonic() - sent_s, outcome, message=repr(error))
            took_s = time.monotonic() - sent_s
            if status == 200:
                return Reply(picture, sent_s, took_s, "answered", answer, json_bytes)
            outcome = "refused" if status == 503 else "failed"
            return Reply(picture, sent_s, took_s, outcome, message=answer.decode(errors="replace"))

        yield ask


def _grpc_request(target: Target, picture: bytes) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=target.model)
    tensor = triton_grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[picture]], object))
    request.inputs.append(tensor._get_tensor())
    request.raw_input_contents.append(tensor._get_content())
    for name in OUTPUTS:
        request.outputs.add(name=name)
    for name, value in target.parameters.items():
        request.parameters[name].double_param = value
    data: bytes = request.SerializeToString()
    return data


def _http_request(target: Target, picture: bytes) -> tuple[bytes, int]:
    """The body, and the length of the JSON at its beginning."""
    tensor = triton_http.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[picture]], object))
    outputs = [triton_http.InferRequestedOutput(name) for name in OUTPUTS]
    body: tuple[bytes, int] = triton_http.InferenceServerClient.generate_request_body(
        [tensor], outputs=outputs, parameters=target.parameters
    )
    return body


def read_answer(reply: Reply) -> dict[str, np.ndarray]:
    """The tensors of an answer, by name."""
    if reply.json_bytes:
        result = triton_http.InferenceServerClient.parse_response_body(
            reply.body, header_length=reply.json_bytes
        )
    else:
        result = triton_grpc.InferResult(service_pb2.ModelInferResponse.FromString(reply.body))
    return {name: result.as_numpy(name) for name in OUTPUTS}
