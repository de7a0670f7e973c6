"""The files of the page, and the description of the HTTP interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from .openapi import describe

FOLDER = Path(__file__).parent / "page"
CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def page_routes() -> Iterator[web.RouteDef]:
    """Yields a route for each file; index.html is at /."""
    for path in sorted(FOLDER.iterdir()):
        place = "/" if path.name == "index.html" else f"/page/{path.name}"
        yield web.get(place, _file_handler(path))
    yield web.get("/openapi.json", _openapi)


def is_page(path: str) -> bool:
    """Whether a path belongs to the page itself or to the description, which contain nothing secret."""
    return path in ("/", "/openapi.json") or path.startswith("/page/")


def _file_handler(path: Path) -> Handler:
    content, content_type = path.read_bytes(), CONTENT_TYPES[path.suffix]

    async def send(request: web.Request) -> web.Response:
        return web.Response(body=content, content_type=content_type, charset="utf-8")

    return send


async def _openapi(request: web.Request) -> web.Response:
    return web.json_response(describe())
