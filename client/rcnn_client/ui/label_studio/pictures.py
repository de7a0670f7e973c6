"""The pictures of tasks: from Label Studio, from hosts that are allowed, or in the task itself."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import unquote_to_bytes

import aiohttp
from yarl import URL

from ..._errors import InvalidImageError, InvalidParameterError

MAX_REDIRECTS = 5
LOGIN_S = 60.0  # how long a login is used; Label Studio's own limit is 5 minutes
SHOWN = 100  # characters of an address in a message
CLOUD = re.compile(r"(s3|gs|azure-blob)://")
DATA = re.compile(r"data:[^,]*?(;base64)?,", re.IGNORECASE)


@dataclass(frozen=True)
class Sources:
    """Where pictures may be fetched from: only from these, because tasks may name any address that this host reaches.

    Attributes:
        label_studio: the address of Label Studio, which serves uploads, local files and cloud storage; None for none.
        token: token of a user of Label Studio, sent only to Label Studio; empty for none.
        hosts: names and ports of other hosts; the port None stands for the default port of http or https.
    """

    label_studio: URL | None
    token: str
    hosts: frozenset[tuple[str, int | None]]

    def allow(self, url: URL) -> bool:
        """Whether a picture may be fetched from an address."""
        names = {(url.host, url.port)} | ({(url.host, None)} if url.is_default_port() else set())
        return self.is_label_studio(url) or bool(names & self.hosts)

    def is_label_studio(self, url: URL) -> bool:
        """Whether an address is Label Studio's."""
        return self.label_studio is not None and url.origin() == self.label_studio.origin()


NO_SOURCES = Sources(None, "", frozenset())


def read_sources(label_studio: str | None, token: str, hosts: Sequence[str]) -> Sources:
    """Parse the sources: the address of Label Studio, and other hosts as HOST or HOST:PORT.

    Raises:
        InvalidParameterError: one of them cannot be parsed, or there is a token but no Label Studio.
    """
    if token and label_studio is None:
        raise InvalidParameterError("--label-studio-token-file is given without --label-studio")
    try:
        base = None if label_studio is None else URL(label_studio)
    except ValueError:
        base = URL()
    if base is not None and (base.scheme not in ("http", "https") or not base.host):
        raise InvalidParameterError(
            f"--label-studio is {label_studio!r}, expected an address such as http://localhost:8080"
        )
    return Sources(base, token, frozenset(_read_host(host) for host in hosts))


def _read_host(text: str) -> tuple[str, int | None]:
    try:
        url = URL(f"//{text}")
    except ValueError:
        url = URL()
    if not url.host or set("/?#@") & set(text):
        raise InvalidParameterError(f"--picture-host is {text!r}, expected HOST or HOST:PORT")
    return url.host, url.explicit_port


class Pictures:
    """Fetches the pictures of one request's tasks.

    >>> async with Pictures(sources, max_bytes=2**26, timeout_s=60) as pictures:
    ...     encoded = await pictures.fetch("/data/upload/1/photo.jpg", 7)
    """

    def __init__(self, sources: Sources, *, max_bytes: int, timeout_s: float) -> None:
        self._sources, self._max_bytes, self._timeout_s = sources, max_bytes, timeout_s
        self._login: asyncio.Task[str] | None = None
        self._login_begin = 0.0

    async def __aenter__(self) -> Pictures:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,  # a small compressed answer may hold gigabytes
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._login is not None:
            self._login.cancel()
        await self._session.close()

    async def fetch(self, place: object, task_id: object) -> bytes:
        """The encoded picture of a task.

        Args:
            place: the place that the task names: a data: URI, an address, or a path of Label Studio.
            task_id: id by which Label Studio resolves addresses of cloud storage.

        Raises:
            InvalidImageError: pictures from there are not allowed, or it cannot be fetched or is too large.
        """
        if not isinstance(place, str) or not place:
            raise InvalidImageError(f"the picture is {_show(place)}, expected an address or a data: URI")
        if place[:5].lower() == "data:":
            return await asyncio.to_thread(_decode, place, self._max_bytes)
        url = self._resolve(place, task_id)
        try:
            return await self._get(url)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            if isinstance(error, InvalidImageError):
                raise
            said = str(error) or f"no answer within {self._timeout_s:g} s"
            raise InvalidImageError(f"{_show(place)}: cannot be fetched: {said}") from error

    def _resolve(self, place: str, task_id: object) -> URL:
        base = self._sources.label_studio
        if CLOUD.match(place):
            code = base64.urlsafe_b64encode(place.encode(errors="surrogatepass")).decode()
            place = f"/tasks/{task_id}/presign/?fileuri={code}"
        try:
            if not place.startswith("/"):
                return URL(place)
            if base is not None:
                return URL(str(base).rstrip("/") + place)
        except ValueError as error:
            raise InvalidImageError(f"{_show(place)}: is not an address: {error}") from error
        raise InvalidImageError(
            f"{_show(place)}: Label Studio has this picture; start rcnn-ui with --label-studio and its address"
        )

    async def _get(self, url: URL) -> bytes:
        """Follow redirects one by one: each place must be allowed, too, and only Label Studio may get the token."""
        for _ in range(MAX_REDIRECTS + 1):
            if url.scheme not in ("http", "https") or not url.host:
                raise InvalidImageError(
                    f"{_show(url)}: expected an address of http or https, a path of Label Studio, or a data: URI"
                )
            if not self._sources.allow(url):
                raise InvalidImageError(
                    f"{_show(url)}: pictures are not fetched from there; to allow it, start rcnn-ui with "
                    f"--picture-host {_show_host(url)}"
                )
            headers = {}
            if self._sources.is_label_studio(url) and self._sources.token:
                headers["Authorization"] = await self._authorization()
            async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
                if answer.status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                    url = url.join(URL(answer.headers["Location"], encoded=True))  # it may be signed
                    continue
                if answer.status != 200:
                    raise InvalidImageError(f"{_show(url)}: {self._explain(answer, url)}")
                return await self._read(answer, url)
        raise InvalidImageError(f"{_show(url)}: more than {MAX_REDIRECTS} redirects")

    def _explain(self, answer: aiohttp.ClientResponse, url: URL) -> str:
        said = f"the answer is {answer.status} {answer.reason}"
        if answer.status in (401, 403, 404) and self._sources.is_label_studio(url):
            return f"{said}; --label-studio-token-file must contain the token of a user who may see the task"
        return said

    async def _read(self, answer: aiohttp.ClientResponse, url: URL) -> bytes:
        encoded = bytearray()
        async for part in answer.content.iter_any():
            encoded += part
            if len(encoded) > self._max_bytes:
                raise _too_large(_show(url), self._max_bytes)
        return bytes(encoded)

    async def _authorization(self) -> str:
        """The header for Label Studio. A personal token, a JWT, is first exchanged for one that is valid for minutes."""
        if self._sources.token.count(".") != 2:
            return f"Token {self._sources.token}"
        if self._login is None or time.monotonic() - self._login_begin > LOGIN_S:
            self._login, self._login_begin = asyncio.create_task(self._log_in()), time.monotonic()
        return f"Bearer {await asyncio.shield(self._login)}"

    async def _log_in(self) -> str:
        url = URL(str(self._sources.label_studio).rstrip("/") + "/api/token/refresh")
        async with self._session.post(
            url, json={"refresh": self._sources.token}, allow_redirects=False
        ) as answer:
            body = await answer.json() if answer.status == 200 else None
            if not isinstance(body, dict) or "access" not in body:
                raise InvalidImageError(
                    f"{url} answers {answer.status} {answer.reason} to the token in --label-studio-token-file, "
                    "expected another token"
                )
            return str(body["access"])


def _decode(uri: str, max_bytes: int) -> bytes:
    """The bytes in a data: URI."""
    found = DATA.match(uri)
    if found is None:
        raise InvalidImageError(f"{_show(uri)}: is not a data: URI, expected data:image/png;base64,...")
    if len(uri) > 4 * max_bytes:
        raise _too_large("the data: URI", max_bytes)
    try:
        encoded = unquote_to_bytes(uri[found.end() :])
        decoded = base64.b64decode(encoded) if found[1] else encoded
    except ValueError as error:
        raise InvalidImageError(f"{_show(uri)}: it cannot be read: {error}") from error
    if len(decoded) > max_bytes:
        raise _too_large("the data: URI", max_bytes)
    return decoded


def _show(place: object) -> str:
    """The place as text for a message, without the query of an address, which may contain a signature."""
    return repr(str(place.with_query(None) if isinstance(place, URL) else place)[:SHOWN])


def _show_host(url: URL) -> str:
    host = f"[{url.host}]" if ":" in (url.host or "") else url.host
    return f"{host}" if url.is_default_port() else f"{host}:{url.port}"


def _too_large(name: str, max_bytes: int) -> InvalidImageError:
    return InvalidImageError(f"{name}: the picture is too large, expected at most {max_bytes // 2**20} MiB")
