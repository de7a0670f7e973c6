"""The HTTP interface for Label Studio; Label Studio's code that calls it is `label_studio/ml/api_connector.py`.

Label Studio sends GET health and POST setup before each POST predict, which has any number of tasks. It reads the
results in the order of the tasks, logs a result that has no `result`, and saves the others.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from ... import aio
from ..._errors import InvalidParameterError, RcnnError, ServerUnavailableError
from ..._images import encoded_size_hw, faults_of
from ..._info import DetectorInfo
from ...tools.console import complain
from ..answers import rcnn_error_answer
from ..arguments import PROG
from ..limits import MAX_BODY_BYTES, Places, read_in_time
from ..triton_server import TritonServer
from .config import Control, read_config
from .pictures import Pictures, Sources
from .regions import MASK_KINDS, make_regions

T = TypeVar("T")

HEALTH_S = 0.8  # Label Studio waits for a second


class LabelStudio:
    """The machine learning backend at /label-studio/MODEL.

    Args:
        server: the server of the detectors.
        places: shared with all other pictures.
        sources: where pictures may be fetched from.
        in_flight: how many tasks are worked on at once.
        timeout_s: limit in seconds for fetching a picture, and again for detecting in it.
    """

    def __init__(
        self, server: TritonServer, places: Places, sources: Sources, *, in_flight: int, timeout_s: float
    ) -> None:
        self._server, self._places, self._sources, self._timeout_s = server, places, sources, timeout_s
        self._at_work = asyncio.Semaphore(in_flight)

    def routes(self) -> list[web.RouteDef]:
        """The routes that Label Studio uses."""
        base = "/label-studio/{model}"
        return [
            web.get(f"{base}/health", _explain(self.health)),
            web.post(f"{base}/setup", _explain(self.setup)),
            web.post(f"{base}/predict", _explain(self.predict)),
            web.post(f"{base}/webhook", _explain(self.webhook)),
        ]

    async def health(self, request: web.Request) -> web.Response:
        """Whether the detector is ready."""
        model = request.match_info["model"]
        async with self._server.detector(model, self._timeout_s) as detector:
            if not await detector.is_ready(timeout_s=HEALTH_S):
                raise ServerUnavailableError(f"{self._server.url} does not serve model {model!r} now")
        return web.json_response({"status": "UP", "model_class": PROG})

    async def setup(self, request: web.Request) -> web.Response:
        """The version of the detector, if a project's labelling config has labels for it."""
        with self._places.admit():
            body = await _read_json(request)
        async with self._server.detector(request.match_info["model"], self._timeout_s) as detector:
            info = await detector.info()
        read_config(_get(body, "schema", str, "a string"), info)
        return web.json_response({"model_version": _version(info)})

    async def predict(self, request: web.Request) -> web.Response:
        """A prediction for each task, or the reason why it has none."""
        with self._places.admit():
            body = await _read_json(request)
            tasks = _get(body, "tasks", list, "a list")
            async with (
                self._server.detector(request.match_info["model"], self._timeout_s) as detector,
                Pictures(self._sources, max_bytes=MAX_BODY_BYTES, timeout_s=self._timeout_s) as pictures,
            ):
                info = await detector.info()
                controls = read_config(_get(body, "label_config", str, "a string"), info)
                predict = functools.partial(self._predict, detector, pictures, controls, _version(info))
                results = await asyncio.gather(*map(predict, tasks))
            text = await asyncio.to_thread(json.dumps, {"results": results})
        return web.json_response(text=text)

    async def webhook(self, request: web.Request) -> web.Response:
        """Receive an event of a project, which changes nothing here."""
        with self._places.admit():
            body = await _read_json(request)
        if body.get("action") == "START_TRAINING":
            raise InvalidParameterError("a served detector is not trained here: train it with rcnn-train")
        return web.json_response({})

    async def _predict(
        self, detector: aio.Detector, pictures: Pictures, controls: Sequence[Control], version: str, task: Any
    ) -> dict[str, Any]:
        """The prediction for one task; a task that fails does not affect the others."""
        try:
            if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
                raise InvalidParameterError("it has no data, expected an object with the picture")
            async with self._at_work:
                result = await self._find(detector, pictures, controls, task)
        except RcnnError as error:
            message = f"task {task.get('id') if isinstance(task, dict) else task!r:.100}: {error}"
            complain(PROG, message)
            return {"error": message}
        scores = [region["score"] for region in result]
        return {"model_version": version, "score": sum(scores) / max(len(scores), 1), "result": result}

    async def _find(
        self, detector: aio.Detector, pictures: Pictures, controls: Sequence[Control], task: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The regions of a task, in all of its pictures."""
        found = []
        for key, group in groupby(sorted(controls, key=attrgetter("key")), attrgetter("key")):
            own = list(group)
            encoded = await pictures.fetch(task["data"].get(key), task.get("id"))
            with faults_of(f"the picture {key!r}"):
                image_size_hw = encoded_size_hw(encoded)
            has_masks = any(control.kind in MASK_KINDS for control in own)
            async with self._places.at_server:
                detections = await detector.detect(
                    encoded,
                    score_thresh=min(control.score_thresh for control in own),
                    masks="rle" if has_masks else "none",
                )
            found += await asyncio.to_thread(make_regions, detections, own, image_size_hw)
        return found


def _explain(handler: Handler) -> Handler:
    """Put the error message into the status line, the only part of an error that Label Studio shows."""

    @functools.wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except RcnnError as error:
            refusal = rcnn_error_answer(error)
            refusal.set_status(
                refusal.status, " ".join(str(error).encode("ascii", "replace").decode().split())
            )
            refusal.headers.popall("Retry-After", None)  # with it, Label Studio would wait, and show less
            return refusal

    return answer


async def _read_json(request: web.Request) -> dict[str, Any]:
    try:
        body = await read_in_time(request.json())
    except (ValueError, LookupError, RecursionError) as error:
        raise InvalidParameterError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidParameterError("the body is not a JSON object")
    return body


def _get(body: dict[str, Any], name: str, kind: type[T], expected: str) -> T:
    value = body.get(name)
    if not isinstance(value, kind):
        raise InvalidParameterError(f"the body has no {name}, or it is not {expected}")
    return value


def _version(info: DetectorInfo) -> str:
    """The version by which Label Studio knows which tasks already have a prediction."""
    newest = max(info.versions, key=int, default="")
    return f"{info.model} {newest}".strip()
