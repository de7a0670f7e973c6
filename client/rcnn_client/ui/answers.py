"""The answers of rcnn-ui: detections, detectors and errors as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

from aiohttp import web

from .._detections import Detections
from .._draw_shapes import class_colour, keypoint_colour, limbs
from .._errors import (
    DeadlineExceededError,
    InvalidImageError,
    InvalidParameterError,
    ModelNotFoundError,
    NotADetectorError,
    RcnnError,
    ServerUnavailableError,
)
from .._images import encoded_orientation, encoded_size_hw
from .._info import DetectorInfo
from ..tools.detect_outputs import as_json
from .triton_server import Timing

STATUSES: dict[type[RcnnError], int] = {
    InvalidImageError: 400,
    InvalidParameterError: 400,
    NotADetectorError: 400,
    ModelNotFoundError: 404,
    ServerUnavailableError: 503,
    DeadlineExceededError: 504,
}
OTHER_STATUS = 502  # the server failed, or refuses rcnn-ui


def error_answer(status: int, message: object) -> web.Response:
    """`{"error": message}` with an HTTP status; with 503, the answer also says when to try again."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status)
    return web.json_response({"error": str(message)}, status=status, headers=headers)


def rcnn_error_answer(error: RcnnError) -> web.Response:
    """The answer to a request that the client library or the server refused."""
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), OTHER_STATUS)
    return error_answer(status, error)


def detections_json(model: str, encoded: bytes, found: Detections, timing: Timing | None) -> bytes:
    """The answer to POST /detect; masks that the server did not paste take milliseconds each."""
    answer: dict[str, Any] = {"model": model, "image_size_hw": None, "orientation": 1}
    with contextlib.suppress(Exception):  # the server may decode more than this Pillow
        answer["image_size_hw"] = encoded_size_hw(encoded)
        answer["orientation"] = encoded_orientation(encoded)
    answer["detections"] = as_json(found)
    if timing is not None:
        answer["timing"] = dataclasses.asdict(timing)
    return json.dumps(answer, ensure_ascii=False).encode(errors="replace")


def info_json(info: DetectorInfo) -> dict[str, Any]:
    """A detector, and how its classes and keypoints are drawn."""
    names = info.keypoint_names
    return dataclasses.asdict(info) | {
        "class_colours": [_hex(class_colour(label)) for label in range(len(info.class_names))],
        "keypoint_colours": [_hex(keypoint_colour(name, number)) for number, name in enumerate(names)],
        "limbs": limbs(names),
    }


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
