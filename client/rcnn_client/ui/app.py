"""The HTTP application of rcnn-ui: its routes, and how many requests it accepts at once."""

from __future__ import annotations

import asyncio
import functools
import io
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

from .._draw import to_rgb
from .._errors import InvalidImageError, RcnnError
from .._images import open_image
from .._orientation import upright
from .answers import detections_json, error_answer, info_json, rcnn_error_answer
from .label_studio.handlers import LabelStudio
from .label_studio.pictures import NO_SOURCES, Sources
from .limits import MAX_BODY_BYTES, Places, read_in_time
from .pages import page_routes
from .query import read_query
from .security import Refused, add_headers, guard
from .triton_server import TritonServer


def make_app(
    server: TritonServer, *, in_flight: int, timeout_s: float, token: str = "", sources: Sources = NO_SOURCES
) -> web.Application:
    """The application; serve it with `handler_cancellation`, so that a client that disconnects cancels its request.

    Args:
        server: closed with the application.
        in_flight: how many pictures are at the server at once. As many again wait; more are refused with 503.
        timeout_s: limit for each picture in seconds.
        token: the token that the header `Authorization` must contain; empty for none.
        sources: where pictures of Label Studio's tasks may be fetched from.
    """
    app = web.Application(middlewares=[_tell_errors, guard(token)], client_max_size=MAX_BODY_BYTES)
    places = Places(in_flight)
    handlers = _Handlers(server, places, timeout_s)
    label_studio = LabelStudio(server, places, sources, in_flight=in_flight, timeout_s=timeout_s)
    app.add_routes(
        [
            *page_routes(),
            web.get("/models", handlers.models),
            web.get("/models/{model}", handlers.model),
            web.post("/detect", handlers.detect),
            web.post("/picture", handlers.picture),
            *label_studio.routes(),
        ]
    )
    app.on_response_prepare.append(add_headers)

    async def close(app: web.Application) -> AsyncIterator[None]:
        yield
        await server.close()

    app.cleanup_ctx.append(close)
    return app


class _Handlers:
    def __init__(self, server: TritonServer, places: Places, timeout_s: float) -> None:
        self._server, self._places, self._timeout_s = server, places, timeout_s

    async def models(self, request: web.Request) -> web.Response:
        """The detectors on the server."""
        return web.json_response({"url": self._server.url, "models": await self._server.find_detectors()})

    async def model(self, request: web.Request) -> web.Response:
        """One of the detectors."""
        async with self._server.detector(request.match_info["model"], self._timeout_s) as detector:
            return web.json_response(info_json(await detector.info()))

    async def detect(self, request: web.Request) -> web.Response:
        """The detections in the posted picture."""
        query = read_query(request.query, request.query.getall)
        with self._places.admit():
            encoded = await _read_picture(request)
            async with self._places.at_server:
                model = query.model or await self._server.only_detector()
                async with self._server.detector(model, self._timeout_s) as detector:
                    call = functools.partial(detector.detect, encoded, **query.options)
                    if query.has_timing:
                        found, timing = await self._server.time(model, call)
                    else:
                        found, timing = await call(), None
            body = await asyncio.to_thread(detections_json, model, encoded, found, timing)
        return web.Response(body=body, content_type="application/json", charset="utf-8")

    async def picture(self, request: web.Request) -> web.Response:
        """The posted picture, upright and as a PNG, for browsers that cannot show it that way."""
        with self._places.admit():
            encoded = await _read_picture(request)
            return web.Response(body=await asyncio.to_thread(_as_png, encoded), content_type="image/png")


async def _read_picture(request: web.Request) -> bytes:
    """The body, or the only file of a form.

    Raises:
        InvalidImageError: there is none.
        web.HTTPException: it is too large, or arrives too slowly.
    """
    encoded = await read_in_time(_read_body(request))
    if not encoded:
        raise InvalidImageError("image: the body is empty, expected a picture: curl --data-binary @photo.jpg")
    return encoded


async def _read_body(request: web.Request) -> bytes:
    if request.content_type != "multipart/form-data":
        return await request.read()
    try:
        form = await request.post()
    except ValueError as error:
        raise InvalidImageError(f"image: the form cannot be read: {error}") from error
    files = [part for part in form.values() if isinstance(part, web.FileField)]
    if len(files) != 1:
        raise InvalidImageError(
            f"image: the form has {len(files)} files, expected one: curl -F image=@photo.jpg"
        )
    return files[0].file.read()


def _as_png(encoded: bytes) -> bytes:
    buffer = io.BytesIO()
    to_rgb(upright(open_image(encoded))).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@web.middleware
async def _tell_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as JSON."""
    try:
        return await handler(request)
    except Refused as error:
        return error_answer(error.status, error)
    except RcnnError as error:
        return rcnn_error_answer(error)
    except web.HTTPRequestEntityTooLarge:
        return error_answer(413, f"the body is too large, expected at most {MAX_BODY_BYTES // 2**20} MiB")
    except web.HTTPNotFound:
        return error_answer(404, f"there is no {request.path} here; /openapi.json lists the paths")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = error_answer(405, f"{request.path} takes {allowed}, not {request.method}")
        answer.headers["Allow"] = allowed
        return answer
    except web.HTTPException as error:
        return error_answer(error.status, error.text or error.reason)
