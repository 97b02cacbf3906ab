"""The page with which a browser becomes a device, as a gateway hands it out: a fixed table of files, and no other.

Whoever connects may ask for it, so a request costs little before anything is known of its sender: files are opened
once, sent in small pieces that wait for the reader, and counted by their bytes for each address.
"""

import asyncio
import os
import re
from collections import Counter
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple, final

from websockets.http11 import Request, Response

from halfback.deploy.door import Line, Pace
from halfback.deploy.joining import Opened, opened_file
from halfback.errors import UserError

LONGEST = 600.0  # seconds that one file may take
_IDLE = 30.0  # seconds that a reader may take for a piece, and for going behind the last one
_PIECE = 1 << 16  # bytes in memory for each reader
_AT_ONCE, _AT_ONCE_EACH = 256, 64  # files on their way: in all, and to one address
# The whole page at once, so many times and twice for each seat, and from then on so many times a second: for one
# address, and for all together from which no device came.
_FETCHES, _STRANGERS = (8, 0.1), (32, 1.0)
_LEAST = 1 << 14  # bytes that any request counts for
_MOST_FILES, _MOST_BYTES = 256, 1 << 28
_NAME = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}){1,3}")
_INDEX = "/index.html"
_HASHED = "/assets/"  # whose names have a digest of what they hold
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# On whatever the page's part of the gateway says. Both `Cross-Origin` make the page isolated, so it may use threads.
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class _File(NamedTuple):
    opened: Opened
    kind: str
    keeps: str


def built_page() -> Path:
    """The folder of the page, in an installed package or in a checkout; UserError where it is not built."""
    package = Path(__file__).resolve()
    for folder in (package.with_name("page"), package.parents[2] / "web" / "dist"):
        if (folder / _INDEX[1:]).is_file():
            return folder
    raise UserError("the page is not built here: cd web && npm ci && npm run build")


@final
class Page:
    """The page's files, and who may have them how often."""

    def __init__(self, folder: Path, seats: int) -> None:
        """Opens all files; UserError where one is none that a page has, or there are too many."""
        self._files: dict[str, _File] = {}
        try:
            for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
                name, kind = f"/{path.relative_to(folder).as_posix()}", _TYPES.get(path.suffix)
                if kind is None or not _NAME.fullmatch(name) or len(self._files) == _MOST_FILES:
                    raise UserError(f"page {path}: it is no file of a page; build it anew: npm run build")
                keeps = "public, max-age=31536000, immutable" if name.startswith(_HASHED) else "no-cache"
                self._files[name] = _File(opened_file(path, "page"), kind, keeps)
            total = sum(file.opened.bytes for file in self._files.values())
            if _INDEX not in self._files or total > _MOST_BYTES:
                raise UserError(f"page {folder}: there must be an {_INDEX[1:]}, and at most {_MOST_BYTES} bytes in all")
        except BaseException:
            self.close()
            raise
        self._files["/"] = self._files.pop(_INDEX)
        (burst, per_second), (all_burst, all_per_second) = _FETCHES, _STRANGERS
        self._pace = Pace((burst + 2 * seats) * total, per_second * total)
        self._strangers = Pace((all_burst + 2 * seats) * total, all_per_second * total)
        self._readers: dict[Line, str] = {}

    async def answer(self, line: Line, request: Request, host: str, *, is_known: bool) -> Response:
        """Hands out the file that a request names, or says in one line why not.

        Args:
            line: where it came.
            request: its path is looked up as it stands, and no other way.
            host: whom it is counted for.
            is_known: whether a device came in from there.
        """
        file = self._files.get(request.path)
        if request.method not in ("GET", "HEAD"):
            return _said(line, HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD are allowed\n", {"Allow": "GET, HEAD"})
        is_kept = file is not None and _tag(file) in _tags(request)
        is_short = file is None or is_kept or request.method == "HEAD"
        due = _LEAST if file is None or is_short else max(file.opened.bytes, _LEAST)
        if not self._pace.take(host, due) or not (is_known or self._strangers.take("", due)):
            return _said(line, HTTPStatus.TOO_MANY_REQUESTS, "too often from here; wait a while\n")
        if file is None:
            return _said(line, HTTPStatus.NOT_FOUND, "there is no such page here\n")
        readers = Counter(self._readers.values())
        if readers.total() >= _AT_ONCE or readers[host] >= _AT_ONCE_EACH:
            return _said(line, HTTPStatus.SERVICE_UNAVAILABLE, "too many at once; come again\n")
        self._readers[line] = host
        try:
            await _handed(line, file, is_kept=is_kept, has_body=not is_short)
        finally:
            del self._readers[line]
        return line.respond(HTTPStatus.NOT_MODIFIED if is_kept else HTTPStatus.OK, "")  # which nobody hears any more

    def stop(self) -> None:
        """Ends what is on its way."""
        for line in self._readers:
            line.transport.abort()

    def close(self) -> None:
        """Closes the files; nobody reads them any more."""
        for opened in {file.opened for file in self._files.values()}:
            os.close(opened.handle)
        self._files = {}


def _tag(file: _File) -> str:
    return f'"{file.opened.sha256[:32]}"'


def _tags(request: Request) -> list[str]:
    """What the asker has kept of this file, by its tags."""
    return [tag.strip() for said in request.headers.get_all("If-None-Match") for tag in said.split(",")]


def _said(line: Line, status: HTTPStatus, why: str, more: dict[str, str] | None = None) -> Response:
    response = line.respond(status, why)
    for name, value in (_HEADERS | (more or {}) | {"Cache-Control": "no-store"}).items():
        response.headers[name] = value
    return response


async def _handed(line: Line, file: _File, *, is_kept: bool, has_body: bool) -> None:
    """Sends a file, piece by piece as it is read, until the reader has gone or takes too long for a piece."""
    status = "304 Not Modified" if is_kept else "200 OK"
    about = {"Content-Type": file.kind, "Content-Length": str(file.opened.bytes)} if not is_kept else {}
    told = about | {"ETag": _tag(file), "Cache-Control": file.keeps, "Connection": "close"} | _HEADERS
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    line.is_reader = True
    with suppress(TimeoutError):
        async with asyncio.timeout(_IDLE):
            await _written(line, f"HTTP/1.1 {status}\r\n{head}\r\n".encode())
        for offset in range(0, file.opened.bytes if has_body else 0, _PIECE):
            data = await asyncio.to_thread(os.pread, file.opened.handle, _PIECE, offset)
            async with asyncio.timeout(_IDLE):
                await _written(line, data)
        line.transport.set_write_buffer_limits(high=1)  # or TLS's goodbye would cut off what is still to be written
        async with asyncio.timeout(_IDLE):
            await line.drain()
        line.transport.close()
        await asyncio.wait([line.connection_lost_waiter], timeout=_IDLE)
    line.transport.abort()
    await line.wait_closed()


async def _written(line: Line, data: bytes) -> None:
    if line.transport.is_closing():
        raise TimeoutError
    line.transport.write(data)
    await line.drain()
